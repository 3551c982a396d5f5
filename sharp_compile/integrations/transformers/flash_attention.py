"""Language models that were loaded with FlashAttention, whose kernels graphs hide.

Dynamo breaks at most of its packages, or at the code that takes padding out for them: each layer then is several
graphs, and none of them has a decoder. PyTorch's fused attention computes the same, on a GPU by a kernel of that kind.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch

from .calls import calls_under_way

_WAY = 'sharp_compile.compile(model) switches it to SDPA, or load it with attn_implementation="sdpa"'


def leave_flash_attention(model: torch.nn.Module) -> None:
    """Have the language model of a model of transformers attend by SDPA where it does by FlashAttention; warn of it.

    Its vision tower stays as it is. So does a model that can't be switched, and the warning says why.
    """
    decoder = _decoder_of(model)
    name = _flash_name(decoder)
    if name is None:
        return
    why = "transformers can't switch it"
    try:
        # Of the model itself, not of towers inside of it.
        decoder.set_attn_implementation({"": "sdpa"})
        part: Any
        for part in model.modules():
            # What is around the decoder makes its masks.
            if _flash_name(part) is not None and any(each is decoder for each in part.modules()):
                part.config._attn_implementation = {"": "sdpa"}
    except (ValueError, ImportError) as error:
        why = str(error)
    loaded = f"the language model was loaded with attn_implementation={name!r}, whose kernels no graph shows"
    if _flash_name(decoder) is None:
        said = f"{loaded}: it is switched to SDPA, which runs PyTorch's kernels of that kind"
        warnings.warn(f'{said} (flash_attention="keep" leaves it)', stacklevel=3)
    else:
        warnings.warn(f"{loaded}, and stays so ({why}): it may run unpruned", stacklevel=3)


def hidden_by_flash_attention() -> str:
    """Return the end of a reason, where the model that is being called attends by FlashAttention; "" elsewhere."""
    name = _flash_name(_decoder_of(_models_under_way()[-1]))
    if name is None:
        return ""
    return f"; the language model was loaded with attn_implementation={name!r}, whose kernels graphs hide: {_WAY}"


def runs_flash_attention() -> bool:
    """Return whether a language model that attends by FlashAttention is running now, not what is around it."""
    models = _models_under_way()
    decoder = _decoder_of(models[-1])
    return _flash_name(decoder) is not None and any(part is models[0] for part in decoder.modules())


def _models_under_way() -> list[Any]:
    """Return the models that are being called, the innermost first; None where there is none."""
    return [model for model, _ in calls_under_way()] or [None]


def _decoder_of(model: Any) -> Any:
    """Return the language model of a model of transformers; None for any other."""
    if "transformers" not in sys.modules:
        return None
    from transformers import PreTrainedModel

    return model.get_decoder() if isinstance(model, PreTrainedModel) else None


def _flash_name(model: Any) -> str | None:
    """Return the name of the FlashAttention by which a model attends: a version, or a kernel of the hub."""
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    # As transformers tells them: "flash_attention_2", "kernels-community/flash-attn2", "paged|flash_attention_2".
    return name if isinstance(name, str) and "flash" in name else None

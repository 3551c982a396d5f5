"""What PEFT's wrappers wrap."""

from __future__ import annotations

import sys
from typing import Any

import torch


def base_of(model: torch.nn.Module) -> torch.nn.Module | None:
    """Return the model that a ``PeftModel`` hands its calls to as they are; None where it has a share in them.

    Learned prompts are put among the embeddings by the wrapper. Adapters are layers inside the model.
    """
    if "peft" not in sys.modules:
        return None
    import peft

    wrapper: Any = model
    if not isinstance(wrapper, peft.PeftModel) or wrapper.active_peft_config.is_prompt_learning:
        return None
    base: torch.nn.Module = wrapper.get_base_model()
    return base

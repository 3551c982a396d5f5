"""FastV (arXiv 2403.06764) the way that forks write it: patched into the layers of one model, in eager mode.

What ``sharp-compile bench`` compares with. It serves one prompt in one row, and knows the arguments that the decoder
layers of Qwen2 and its relatives have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .decoders import Prompt


def patch(model: Prompt, layer: int, kept: int) -> None:
    """Patches a model, which from then on keeps ``kept`` of the visual tokens after ``layer``.

    The tokens that the last position attends to most are kept, and all text. Later layers get shorter hidden states,
    rotary tables and masks; a decoding step runs as it is, on the shorter caches.
    """
    decoder = model.language_model.model
    state: dict[str, Tensor | None] = {"kept": None, "is_visual": None}

    def begin(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        state["kept"], state["is_visual"] = None, kwargs.get("is_visual")

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
        is_visual = state["is_visual"]
        if module.layer_idx == layer and is_visual is not None:
            state["kept"] = _choose(query, key, is_visual, kept)
        if mask is not None and mask.shape[-1] > key.shape[2]:
            mask = mask[..., -key.shape[2] :]
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    def shorten(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positions = state["kept"]
        if positions is None:
            return None
        if args[0].shape[1] > len(positions):
            args = (args[0][:, positions], *args[1:])
        tables = kwargs["position_embeddings"]
        kwargs["position_embeddings"] = tuple(table[:, positions] for table in tables)
        if (mask := kwargs.get("attention_mask")) is not None:
            kwargs["attention_mask"] = mask[:, :, positions][..., positions]
        return args, kwargs

    AttentionInterface.register("handpatched", attend)
    decoder.config._attn_implementation = "handpatched"
    model.register_forward_pre_hook(begin, with_kwargs=True)
    for block in decoder.layers[layer + 1 :]:
        block.register_forward_pre_hook(shorten, with_kwargs=True)


def _choose(query: Tensor, key: Tensor, is_visual: Tensor, kept: int) -> Tensor:
    """Return the positions that remain ``[N]``, ascending: all text, and the visual tokens with the most attention."""
    groups = query.shape[1] // key.shape[1]
    last = query[:, :, -1:].unflatten(1, (key.shape[1], groups))
    logits = (last @ key.unsqueeze(2).transpose(-1, -2)).squeeze(-2) * query.shape[-1] ** -0.5
    scores = logits.float().softmax(-1).mean((0, 1, 2)).masked_fill(~is_visual[0], -1)
    chosen = scores.topk(kept).indices
    text = (~is_visual[0]).nonzero().flatten()
    return torch.cat([text, chosen]).sort().values

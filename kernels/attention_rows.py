"""A few rows of an attention matrix, without the matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_rows(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Return attention probabilities of some queries, to every key position.

    Args:
        query: ``[B, H, T, D]``, after rotary embedding.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv (grouped-query attention).
        mask: boolean (True: may be seen) or additive, broadcastable to ``[B, H, T, S]``. None: every query sees
            every key.
        scale: multiplies the products; None for ``D ** -0.5``.

    Returns:
        ``[B, H, T, S]`` float32. A row that may see nothing is all zeros.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grouped = query.unflatten(1, (key.shape[1], query.shape[1] // key.shape[1])).float()
    scores = (grouped @ key.float().unsqueeze(2).transpose(-1, -2)).flatten(1, 2) * scale
    if mask is not None:
        scores = scores if mask.dtype == torch.bool else scores + mask.float()
        scores = scores.masked_fill(~to_bool_mask(mask), float("-inf"))
    highest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - highest).exp()
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def to_bool_mask(mask: Tensor) -> Tensor:
    """Return an attention mask as booleans, True where it lets a query see a key.

    Additive masks hide a key by minus infinity or by the lowest number of their type.
    """
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

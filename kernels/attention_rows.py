"""A few rows of an attention matrix, without the matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_rows(
    query: Tensor, key: Tensor, rows: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention probabilities of some query positions, to every key position.

    Args:
        query: ``[B, H, S, D]``, after rotary embedding.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv (grouped-query attention).
        rows: ``[T]`` int64, the query positions.
        scale: multiplies the products; None for ``D ** -0.5``.
        mask: boolean (True: may be seen) or additive, broadcastable to ``[B, H, S, S]``; it says all that
            the attention may see. None for causal attention.

    Returns:
        ``[B, H, T, S]`` float32. A row that may see nothing is all zeros.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = query.shape[1] // key.shape[1]
    chosen = query.index_select(2, rows).unflatten(1, (key.shape[1], groups)).float()
    scores = (chosen @ key.float().unsqueeze(2).transpose(-1, -2)).flatten(1, 2) * scale
    if mask is None:
        visible = torch.arange(key.shape[2], device=key.device) <= rows[:, None]
    else:
        mask = mask if mask.shape[-2] == 1 else mask.index_select(-2, rows)
        visible = may_see(mask)
        if mask.dtype != torch.bool:
            scores = scores + mask.float()
    scores = scores.masked_fill(~visible, float("-inf"))
    highest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - highest).exp()
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def may_see(mask: Tensor) -> Tensor:
    """An attention mask as booleans, True where it lets a query see a key.

    Additive masks hide a key by minus infinity or by the lowest number of their type.
    """
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2

"""The attention of the text behind the video."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.received_attention import received_attention
from ..context import Context

_MOST_ROWS = 64


def text_rows(ctx: Context) -> tuple[Tensor, Tensor]:
    """The positions of the last rows ``[T]`` int64, and what each counts in each batch row ``[B, T]`` float32.

    The text behind the last visual token counts, the last 64 tokens of it where there are more; the last
    position always does. Weights of a batch row add up to 1.
    """
    length = ctx.is_visual.shape[1]
    position = torch.arange(length, device=ctx.is_visual.device)
    # A fixed number of rows, so that no length is compared with it; those before the start count nothing.
    wanted = torch.arange(_MOST_ROWS, device=position.device) + (length - _MOST_ROWS)
    last_visual = position.where(ctx.is_visual, -1).amax(1, keepdim=True)
    counts = (wanted > last_visual) & (wanted >= 0)
    rows = wanted.clamp_min(0)
    counts = (counts & ~ctx.is_padding[:, rows]) | (wanted == length - 1)
    weight = counts.to(torch.float32)
    return rows, weight / weight.sum(1, keepdim=True)


def text_attention(
    ctx: Context, rows: Tensor, weight: Tensor, key: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """``a[v] = mean_h sum_t weight[t] softmax(q_t . k)[v]``.

    Args:
        ctx: the state of the scoring layer.
        rows: ``[T]`` int64.
        weight: ``[B, T]`` float32.
        key: ``[B, Hkv, S, D]``, in place of the layer's own.
        mask: ``[1 or B, 1 or H, T, S]``, in place of the layer's own.

    Returns:
        ``[B, S]`` float32.
    """
    query = ctx.query.index_select(2, rows)
    key = ctx.grouped_key if key is None else key
    return received_attention(query, key, weight, ctx.mask_of(rows) if mask is None else mask, ctx.scale)

"""The attention of the text behind the video."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.received_attention import received_attention
from ..context import Context

_MOST_ROWS = 64
# Each layer leaves so much of what the other text knows and the last position has not read.
_UNREAD = 0.6


def text_rows(ctx: Context) -> tuple[Tensor, Tensor]:
    """The positions of the last rows ``[T]`` int64, and which of them count in each batch row ``[B, T]`` bool.

    The text behind the last visual token counts, the last 64 tokens of it where there are more; the last
    position, which is the last of the rows, always does.
    """
    length = ctx.is_visual.shape[1]
    position = torch.arange(length, device=ctx.is_visual.device)
    # A fixed number of rows, so that no length is compared with it; those before the start count nothing.
    wanted = torch.arange(_MOST_ROWS, device=position.device) + (length - _MOST_ROWS)
    last_visual = position.where(ctx.is_visual, -1).amax(1, keepdim=True)
    counts = (wanted > last_visual) & (wanted >= 0)
    rows = wanted.clamp_min(0)
    return rows, (counts & ~ctx.is_padding[:, rows]) | (wanted == length - 1)


def text_query(ctx: Context) -> Tensor:
    """The mean of the text's queries ``[B, H, 1, D]``.

    ``0.6 ** (layer + 1)`` of it is the mean of all rows but the last position, which gathers what they say layer by
    layer: 3/5 at layer 0, 1/3 at layer 1, hardly anything at layer 8.

    Attention to keys by the mean of queries is the geometric mean of their attentions, normalised.
    """
    rows, counts = text_rows(ctx)
    is_last = torch.arange(_MOST_ROWS, device=rows.device) == _MOST_ROWS - 1
    others = (counts & ~is_last).to(torch.float32)
    number = others.sum(1, keepdim=True)
    share = (number > 0) * _UNREAD ** (ctx.layer + 1)
    weight = torch.where(is_last, 1 - share, others * share / number.clamp_min(1))
    query = ctx.queries(rows)
    return (query.float() * weight[:, None, :, None]).sum(2, keepdim=True).to(query.dtype)


def text_attention(ctx: Context, query: Tensor, key: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """``a[v] = mean_h softmax(q . k)[v]``.

    Args:
        ctx: the state of the scoring layer.
        query: ``[B, H, 1, D]``, which sees what the last position sees.
        key: ``[B, Hkv, S, D]``, in place of the layer's own.
        mask: ``[1 or B, 1 or H, 1, S]``, in place of the last position's.

    Returns:
        ``[B, S]`` float32.
    """
    key = ctx.grouped_key if key is None else key
    mask = ctx.mask_of(ctx.last) if mask is None else mask
    weight = torch.ones_like(ctx.is_visual[:, :1], dtype=torch.float32)
    return received_attention(query, key, weight, mask, ctx.scale)

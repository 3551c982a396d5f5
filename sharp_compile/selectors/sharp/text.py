"""The attention of the text after the video."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.attention_column_sums import attention_column_sums
from ..context import Context

_MAX_ROWS = 64
# Each layer leaves so much of what the other text knows and the last position has not read.
_UNREAD = 0.6


def text_rows(ctx: Context) -> tuple[Tensor, Tensor]:
    """Return the positions of the last 64 real tokens of each row, and which of them count.

    The text after the last visual token counts, and the last real position always does. It is the last of the 64; rows
    of fewer real tokens begin with positions that do not count.

    Returns:
        ``[B, T]`` int64 and ``[B, T]`` bool.
    """
    position = torch.arange(ctx.is_visual.shape[1], device=ctx.is_visual.device)
    # A fixed number of rows, so that no length is compared with it.
    wanted = torch.arange(_MAX_ROWS, device=position.device)
    place = _MAX_ROWS - 1 - _real_behind(ctx.is_padding)
    # What has no place among them goes to one more, which is cut off.
    place = place.where(~ctx.is_padding & (place >= 0), _MAX_ROWS)
    unplaced = torch.full_like(place[:, :1], -1).expand(-1, _MAX_ROWS + 1)
    rows = unplaced.scatter(1, place, position.expand_as(place))[:, :_MAX_ROWS]
    last_visual = position.where(ctx.is_visual, -1).amax(1, keepdim=True)
    return rows.clamp_min(0), (rows > last_visual) | (wanted == _MAX_ROWS - 1)


def _real_behind(is_padding: Tensor) -> Tensor:
    """Return how many real tokens are after each position, ``[B, S]`` int64."""
    real = (~is_padding).cumsum(1)
    return real[:, -1:] - real


def text_query(ctx: Context) -> Tensor:
    """Return the mean of the text's queries ``[B, H, 1, D]``.

    ``0.6 ** (layer + 1)`` of it is the mean of all rows but the last position, which gathers what they say layer by
    layer: 3/5 at layer 0, 1/3 at layer 1, hardly anything at layer 8.

    Attention to keys by the mean of queries is the geometric mean of their attentions, normalised.
    """
    rows, counts = text_rows(ctx)
    is_last = torch.arange(_MAX_ROWS, device=rows.device) == _MAX_ROWS - 1
    others = (counts & ~is_last).to(torch.float32)
    number = others.sum(1, keepdim=True)
    share = (number > 0) * _UNREAD ** (ctx.layer + 1)
    weight = torch.where(is_last, 1 - share, others * share / number.clamp_min(1))[:, None, :, None]
    query = ctx.queries(rows)
    # What does not count may be no number: the queries of padding.
    weighted = (query.float() * weight).where(weight > 0, 0)
    return weighted.sum(2, keepdim=True).to(query.dtype)


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
    return attention_column_sums(query, key, weight, mask, ctx.scale)

"""Segment-aware causal masking: frames form segments, and visual tokens attend inside their own."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.attention_column_sums import attention_column_sums
from ...kernels.segment_attention import inside
from ...kernels.shift import shifted
from ...sharp_options import Segment
from ..context import Context
from .dedup import content

_MAX_ROWS = 16
# What the step counts beside the text's own attention: a correction.
_WEIGHT = 0.5


def segments(frame: Tensor, vectors: Tensor, segment: Segment) -> Tensor:
    """Return the segment of each position.

    With ``segment.frames`` a segment is that many frames in a row. With ``segment.count`` the frames of a row
    are cut into so many segments, where the means of neighbouring frames are least similar (cosine; ties to
    the lower position).

    Args:
        frame: ``[B, S]`` int64, ascending, -1 where a position is in none.
        vectors: ``[B, S, F]`` of the tokens, compared for the cuts.
        segment: how many frames or segments.

    Returns:
        ``[B, S]`` int64, -1 where a position is in none.
    """
    if segment.count is None:
        assert segment.frames is not None
        number = frame.div(segment.frames, rounding_mode="floor")
    else:
        change = _change(frame, vectors)
        order = change.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        number = ((rank < segment.count - 1) & change.isfinite()).cumsum(1)
    return number.where(frame >= 0, -1)


def own_segments(ctx: Context, segment: Segment) -> Tensor:
    """``segments`` of the tokens at a layer, compared by what they are about, ``[B, S]`` int64."""
    return segments(ctx.frame, content(ctx), segment)


def within_segments(ctx: Context, scores: Tensor, segment: Segment) -> Tensor:
    """Return one more step of attention, from the tokens that the text attends to: ``sum_u s[u] a_seg[u, v] / 2``.

    ``u`` are the 16 highest-scored visual tokens of a row and ``s`` their scores, at least 0.
    ``a_seg`` is the attention of the layer, mean over heads, in which a visual token sees the text before it
    and what is before it in its own segment. A token that can be seen from other segments only gets nothing.

    Args:
        ctx: the state of the scoring layer.
        scores: ``[B, S]`` float32.
        segment: what a segment is.

    Returns:
        ``[B, S]`` float32.
    """
    ranked = scores.masked_fill(~ctx.is_visual, float("-inf"))
    # As many as there are, if fewer than 16: padded first, so that no length is compared with 16.
    ranked = torch.cat([ranked, ranked.new_full((ranked.shape[0], _MAX_ROWS), float("-inf"))], dim=1)
    rows = ranked.argsort(dim=1, descending=True, stable=True)[:, :_MAX_ROWS]
    top = ranked.gather(1, rows)
    rows = rows.clamp_max(ctx.is_visual.shape[1] - 1)
    own = own_segments(ctx, segment)
    visible = ctx.visible_to(rows) & inside(own, own.gather(1, rows))[:, None]
    return attention_column_sums(ctx.queries(rows), ctx.grouped_key, _WEIGHT * top.clamp_min(0), visible, ctx.scale)


def _change(frame: Tensor, vectors: Tensor) -> Tensor:
    """``1 - cosine`` of the means of a frame and the one before it, where it starts, and -inf elsewhere."""
    length = frame.shape[1]
    position = torch.arange(length, device=frame.device)
    before, after = shifted(frame, 1, -1), shifted(frame, -1, -1)
    starts, ends = (frame >= 0) & (frame != before), (frame >= 0) & (frame != after)
    # The first and the last token of each position's frame, and the last one of the frame before.
    first = position.where(starts, -1).cummax(1).values.clamp_min(0)
    last = position.where(ends, length).flip(1).cummin(1).values.flip(1).clamp_max(length - 1)
    last_before = shifted(position.where(ends, -1).cummax(1).values, 1, -1).gather(1, first)
    # Sums are as good as means: the cosine does not see a factor.
    running = vectors.float().where((frame >= 0)[..., None], 0).cumsum(1)
    total = _at(running, last) - _at(running, first) + _at(vectors.float(), first)
    change = 1 - torch.nn.functional.cosine_similarity(total, _at(total, last_before.clamp_min(0)), dim=-1)
    return change.where(starts & (last_before >= 0), float("-inf"))


def _at(vectors: Tensor, positions: Tensor) -> Tensor:
    return vectors.gather(1, positions[..., None].expand_as(vectors))

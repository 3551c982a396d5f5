"""Positional debiasing: what position alone explains is taken off the text's attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import Context
from .text import text_attention

# Far below the mean probability of a token in any context, so that only ratios of nothing to nothing are tamed.
_TINY = 1e-8


def debiased(ctx: Context, query: Tensor, form: str | None) -> Tensor:
    """Return the text's attention without what the rotary embedding alone explains.

    A key without content stands for every visual token: the mean ``kbar`` of the visual keys of a row and head
    before their rotary embedding, then rotated to the token's position. With ``s = q . k * scale`` and
    ``b = q . R_v kbar * scale``:

    * logit: ``softmax_v(s - b)`` over the visual tokens, which is attention to the keys ``k - R_v kbar``;
    * subtract: ``softmax(s) - softmax(b)``;
    * ratio: ``softmax(s) / softmax(b)``.

    Args:
        ctx: the state of the scoring layer.
        query: ``[B, H, 1, D]``, that of the text.
        form: one of ``sharp_compile.parts.FORMS``.

    Returns:
        ``[B, S]`` float32.
    """
    without_content = ctx.rotate(_mean_visual_key(ctx)).to(ctx.grouped_key.dtype)
    if form == "logit":
        visible = ctx.visible_to(ctx.last) & ctx.is_visual[:, None, None, :]
        return text_attention(ctx, query, ctx.grouped_key - without_content, visible)
    key = without_content.where(ctx.is_visual[:, None, :, None], ctx.grouped_key)
    return _apart(text_attention(ctx, query), text_attention(ctx, query, key), form)


def measured(ctx: Context, scores: Tensor, profiles: Tensor, lengths: Tensor, form: str | None) -> Tensor:
    """``scores`` ``[B, S]`` without what was measured on videos without content.

    Args:
        ctx: the state of the scoring layer.
        scores: the text's attention probabilities.
        profiles: ``[N, V]`` float32, by the number of a visual token in its row.
        lengths: ``[N]`` int64, those of the profiles. A row takes the profile of the nearest length, stretched
            linearly to its own.
        form: ``"subtract"`` or ``"ratio"``.
    """
    visual = ctx.is_visual.sum(1, keepdim=True)
    nearest = (lengths - visual).abs().argmin(1)
    length = lengths[nearest][:, None]
    number = ctx.is_visual.cumsum(1) - 1
    place = number.clamp_min(0) * (length - 1) / (visual - 1).clamp_min(1)
    below = place.floor().long().minimum(length - 1)
    above = (below + 1).minimum(length - 1)
    profile = profiles[nearest]
    bias = torch.lerp(profile.gather(1, below), profile.gather(1, above), place - below)
    return _apart(scores, bias, form)


def _apart(scores: Tensor, bias: Tensor, form: str | None) -> Tensor:
    return scores - bias if form == "subtract" else scores / (bias + _TINY)


def _mean_visual_key(ctx: Context) -> Tensor:
    """Return keys like ``ctx.grouped_key_unrotated``, all of them the mean of the visual ones of their row and head."""
    unrotated = ctx.grouped_key_unrotated
    visual = ctx.is_visual[:, None, :, None]
    count = visual.sum(2, keepdim=True).clamp_min(1)
    mean = unrotated.float().where(visual, 0).sum(2, keepdim=True) / count
    return mean.to(unrotated.dtype).expand_as(unrotated)

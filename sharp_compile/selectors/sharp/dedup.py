"""Token deduplication: a near copy of a kept, higher-scored token counts a tenth."""

from __future__ import annotations

from torch import Tensor

from ...kernels.greedy_cosine_dedup import greedy_cosine_dedup
from ...sharp_options import Dedup
from ..context import Context

# What is left of a copy's score: less, and many copies of what matters most are given up for what matters hardly.
_WORTH = 0.1


def demote_copies(ctx: Context, scores: Tensor, dedup: Dedup) -> Tensor:
    """``scores`` ``[B, S]`` float32, a tenth of them where a token is a near copy of one that scores higher.

    The visual tokens are walked in the order of ``scores``, ties to the lower position; one whose cosine
    similarity with a token that was passed is above the threshold is a near copy, until as many are passed as the
    row keeps. What the walk does not reach is after them all.
    """
    order = scores.masked_fill(~ctx.is_visual, float("-inf")).argsort(dim=1, descending=True, stable=True)
    vectors = ctx.hidden if dedup.on == "hidden" else content(ctx)
    copies = greedy_cosine_dedup(vectors, order, ctx.is_visual.sum(1), ctx.budget, dedup.threshold)
    return scores.where(~copies, scores.minimum(_WORTH * scores))


def content(ctx: Context) -> Tensor:
    """What a token is about, without its position: its keys before their rotary embedding, ``[B, S, Hkv * D]``."""
    return ctx.grouped_key_unrotated.transpose(1, 2).flatten(2)

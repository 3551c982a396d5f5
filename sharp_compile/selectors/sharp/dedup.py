"""Token deduplication: a near copy of a kept, higher-scored token gives its place to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.near_copies import near_copies
from ...parts import Dedup
from ..context import Context


def demote_copies(ctx: Context, scores: Tensor, dedup: Dedup) -> Tensor:
    """Scores ``[B, S]`` float32 in whose order no token is a near copy of one before, as long as there are others.

    The visual tokens are walked in the order of `scores`, ties to the lower position; one whose cosine
    similarity with a token that was kept is above the threshold is skipped, until as many are kept as the
    row keeps. Skipped tokens come behind all others, in the order of their scores.
    """
    order = scores.masked_fill(~ctx.is_visual, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    vectors = ctx.hidden if dedup.on == "hidden" else content(ctx)
    copies = near_copies(vectors, order, ctx.is_visual.sum(1), ctx.budget, dedup.threshold)
    # Whole numbers up to twice the length, which float32 holds up to 16 million.
    return -(rank + copies * order.shape[1]).to(torch.float32)


def content(ctx: Context) -> Tensor:
    """What a token is about, without its position: its keys before their rotary embedding, ``[B, S, Hkv * D]``."""
    return ctx.grouped_key_unrotated.transpose(1, 2).flatten(2)

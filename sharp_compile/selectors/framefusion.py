"""FrameFusion (arXiv 2501.01986): what repeats the frame before is merged, what is left is ranked by importance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..kernels.shift import shifted
from ..selector_registry import register_selector
from .context import Context
from .fastv import fastv

_THRESHOLD = 0.6


@register_selector("framefusion", merges=True)
def framefusion(ctx: Context) -> tuple[Tensor, Tensor]:
    """Merge a token with the one at its place in the frame before, if their hidden states are alike.

    A place is the rank of a token among those of its frame that are there. A run of frames that are alike at a place,
    each with the one before (cosine above 0.6), has one representative: its first token. These heads of runs are
    ranked by the attention from the last position; all that repeats comes after them, the least alike first. A head
    that is dropped takes its run along.

    In the paper several shallow layers merge, one after the other, for as long as enough tokens are alike, and the
    layer after them drops what is above the budget by its importance. Here a cut does both at its layer, and keeps
    its exact number of tokens: where the heads are fewer, some of what repeats is kept, unmerged. The threshold is
    the paper's. The states that are compared are those that enter the layer. Where a graph shows one frame only,
    nothing has a frame before it, and the rule is FastV.

    Returns:
        ``[B, S]`` float32, and the positions of the representatives ``[B, S]`` int64.
    """
    place, before = _places(ctx)
    hidden = ctx.hidden.float()
    previous = hidden.gather(1, before.clamp_min(0)[..., None].expand_as(hidden))
    likeness = cosine_similarity(hidden, previous, dim=-1)
    repeats = (before >= 0) & (likeness > _THRESHOLD)
    return fastv(ctx).where(~repeats, -likeness), _heads(place, repeats)


def _places(ctx: Context) -> tuple[Tensor, Tensor]:
    """Return the place of each token in its frame, and the position of the token there in the frame before.

    Both are ``[B, S]`` int64; the latter is -1 where there is no such token. What is not visual has the place S.
    """
    frame, length = ctx.frame, ctx.frame.shape[1]
    position = torch.arange(length, device=frame.device)
    # A frame is in one piece. Its first position, and the last visual one before it, which ends the frame before.
    first = position.where(frame != shifted(frame, 1, -1), 0).cummax(1).values
    last = shifted(position.where(ctx.is_visual, -1).cummax(1).values, 1, -1).gather(1, first)
    place = position - first
    before = first.gather(1, last.clamp_min(0)) + place
    exists = ctx.is_visual & (last >= 0) & (before <= last)
    return place.where(ctx.is_visual, length), before.where(exists, -1)


def _heads(place: Tensor, repeats: Tensor) -> Tensor:
    """The position of the first token of the run that each is in, ``[B, S]`` int64: its own where it repeats none."""
    # By place, then by frame: a run is in one piece, and begins with the last token before that repeats none.
    order = place.argsort(dim=1, stable=True)
    number = torch.arange(place.shape[1], device=place.device)
    begins = number.where(~repeats.gather(1, order), 0).cummax(1).values
    return torch.zeros_like(order).scatter(1, order, order.gather(1, begins))

"""Kept tokens that stand for others."""

from __future__ import annotations

import torch
from torch import Tensor

from .gather import gather_tokens


def merge_tokens(value: Tensor, positions: Tensor, merge_into: Tensor) -> Tensor:
    """``value`` at ``positions``, each the mean of the token there and of all dropped ones that it stands for.

    A kept token counts to its own mean only, whatever ``merge_into`` says of it; a dropped one whose representative was
    dropped too counts to none. Sums and means are taken in float32 for half types. On a GPU the order of the sums
    is not fixed, and neither is their last bit, unless PyTorch is told to use deterministic algorithms.

    Args:
        value: ``[B, S, C]`` of a float type. Differentiable.
        positions: ``[B, N]`` int64, unique in each row: the tokens that are kept.
        merge_into: ``[B, S]`` int64: the position of each token's representative, its own where it stands for itself.

    Returns:
        ``[B, N, C]`` of ``value``'s type.
    """
    rows, kept = positions.shape
    number = torch.arange(kept, device=positions.device).expand_as(positions)
    place = torch.full_like(merge_into, -1).scatter(1, positions, number)
    stands = place.gather(1, merge_into)
    joins = (place < 0) & (stands >= 0)
    # Rows one after the other, so that tokens are added whole. What joins nothing adds 0 to the first of its row.
    first = torch.arange(rows, device=merge_into.device)[:, None] * kept
    target = (stands.where(joins, 0) + first).flatten()
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    sums = gather_tokens(wide, positions, 1, 0)
    added = wide.where(joins[..., None], 0).flatten(0, 1)
    sums = sums.flatten(0, 1).index_add(0, target, added).view(sums.shape)
    counts = torch.ones_like(positions).flatten().index_add(0, target, joins.long().flatten()).view(positions.shape)
    return (sums / counts[..., None]).to(value.dtype)

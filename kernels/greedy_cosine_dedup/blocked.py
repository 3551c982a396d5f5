"""The form for the CPU: the walk in blocks, so that it is made of products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256


def greedy_cosine_dedup(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    """See ``kernels.greedy_cosine_dedup``."""
    skipped = torch.zeros(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    for row, (count, wanted) in enumerate(zip(candidates.tolist(), budget.tolist(), strict=True)):
        walk = order[row, :count]
        kept = vectors.new_empty((0, vectors.shape[2]), dtype=torch.float32)
        for block in walk.split(_BLOCK):
            if len(kept) >= wanted:
                break
            unit = torch.nn.functional.normalize(vectors[row, block].float(), dim=-1)
            copies = (unit @ kept.T > threshold).any(1)
            keeps = _walk(unit, ~copies, threshold)
            # Those after the last one that fits into the budget are not walked.
            walked = keeps.cumsum(0) - keeps.long() < wanted - len(kept)
            skipped[row, block] = ~keeps & walked
            kept = torch.cat([kept, unit[keeps & walked]])
    return skipped


def _walk(unit: Tensor, open_: Tensor, threshold: float) -> Tensor:
    """Return which of the vectors ``[N, F]`` in a block are kept, given which ``[N]`` bool may be.

    Each round decides all that have no undecided near copy before them, which is at least the first: those are
    kept, and their near copies are not. That is the result of walking one by one.
    """
    before = (unit @ unit.T > threshold).tril(-1)
    keeps = torch.zeros_like(open_)
    while open_.any():
        first = open_ & ~(before & open_).any(1)
        keeps |= first
        open_ = open_ & ~first & ~(before & first).any(1)
    return keeps

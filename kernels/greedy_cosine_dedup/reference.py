"""Greedy deduplication by its definition: one position at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy_cosine_dedup(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    """See ``sharp_compile.kernels.greedy_cosine_dedup.greedy_cosine_dedup``."""
    skipped = torch.zeros(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    for row in range(len(vectors)):
        kept: list[Tensor] = []
        for position in order[row, : int(candidates[row])].tolist():
            if len(kept) == int(budget[row]):
                break
            vector = vectors[row, position].float()
            length = vector.norm()
            unit = vector / length if length > 0 else vector
            if any(unit @ other > threshold for other in kept):
                skipped[row, position] = True
            else:
                kept.append(unit)
    return skipped

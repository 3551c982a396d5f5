"""Which tokens a deduplication skips.

``reference`` is the definition, ``blocked`` what CPUs run, ``triton`` what GPUs run and ``ops`` the operator
of both; ``cost`` says what it should take.
"""

from __future__ import annotations

from torch import Tensor

from . import ops

__all__ = ["greedy_cosine_dedup"]


def greedy_cosine_dedup(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    """Walk each row's tokens from the best to the worst, and skip near copies of what it has kept.

    Row b walks the positions ``order[b, 0], order[b, 1], ...``, the first ``candidates[b]`` of them. A position
    is skipped if the cosine similarity of its vector with that of a kept one is above the threshold, and kept
    otherwise. The walk ends when ``budget[b]`` are kept.

    Args:
        vectors: ``[B, S, F]``, any float type; similarities are computed in float32. A vector of zeros has
            similarity 0 with all.
        order: ``[B, S]`` int64, positions of which the first ``candidates[b]`` are distinct.
        candidates: ``[B]`` int64, at most S.
        budget: ``[B]`` int64, at most S.
        threshold: on the cosine similarity.

    Returns:
        ``[B, S]`` bool, by position: True where it was skipped; False where it was kept or not reached.
    """
    return ops.greedy_cosine_dedup(vectors, order, candidates, budget, threshold)

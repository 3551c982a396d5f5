"""Greedy max-min selection: each next token is the one farthest from all that were chosen before."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1024


@torch.library.custom_op("sharp_compile::farthest_point_ranking", mutates_args=())
def farthest_point_ranking(hidden: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Ranks candidates by greedy max-min cosine distance (DivPrune, arXiv 2503.02175, algorithm 1).

    The first is the candidate whose nearest other candidate is farthest away; each next one has the
    largest distance to the nearest of those chosen. Ties go to the lower position. One operator, since the
    steps depend on each other and their number is known at run time only.

    Args:
        hidden: ``[B, S, C]``, any float type; distances are computed in float32.
        candidates: ``[B, S]`` bool, the positions to choose from.
        counts: ``[B]`` int64, how many to choose in each row; fewer where a row has fewer candidates.

    Returns:
        ``[B, S]`` float32: a row's count for its first choice, one less for the second, and so on; 0 for
        positions that were not chosen.
    """
    scores = torch.zeros(candidates.shape, dtype=torch.float32, device=hidden.device)
    for row, count in enumerate(counts.tolist()):
        positions = candidates[row].nonzero().squeeze(1)
        if len(positions) == 0:
            continue
        unit = torch.nn.functional.normalize(hidden[row, positions].float(), dim=-1)
        chosen = torch.zeros(len(positions), dtype=torch.bool, device=hidden.device)
        distance = _nearest_other(unit)
        for step in range(min(count, len(positions))):
            best = distance.masked_fill(chosen, float("-inf")).argmax()
            chosen[best] = True
            scores[row, positions[best]] = count - step
            to_best = 1.0 - unit @ unit[best]
            distance = to_best if step == 0 else torch.minimum(distance, to_best)
    return scores


@farthest_point_ranking.register_fake
def _(hidden: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    return torch.empty(candidates.shape, dtype=torch.float32, device=hidden.device)


def _nearest_other(unit: Tensor) -> Tensor:
    """Return the distance of each of ``[N, C]`` unit vectors to the nearest other one, in chunks of rows."""
    nearest = []
    for start in range(0, len(unit), _CHUNK):
        similarity = unit[start : start + _CHUNK] @ unit.T
        similarity.diagonal(offset=start).fill_(float("-inf"))
        nearest.append(1.0 - similarity.amax(1))
    return torch.cat(nearest)

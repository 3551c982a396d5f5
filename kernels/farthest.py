"""Greedy max-min selection: each next token is the one farthest from all that were chosen before."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1024


@torch.library.custom_op("sharp_compile::farthest_point_ranking", mutates_args=())
def farthest_point_ranking(hidden: Tensor, candidates: Tensor, counts: Tensor, most: int) -> Tensor:
    """Ranks candidates by greedy max-min cosine distance (DivPrune, arXiv 2503.02175, algorithm 1).

    The first is the candidate whose nearest other candidate is farthest away; each next one has the
    largest distance to the nearest of those chosen. Ties go to the lower position. One operator, since the
    steps depend on each other and a graph of any length can't have a loop. On a device no step waits for a value:
    each row takes ``most`` steps.

    Args:
        hidden: ``[B, S, C]``, any float type; distances are computed in float32.
        candidates: ``[B, S]`` bool, the positions to choose from.
        counts: ``[B]`` int64, how many to choose in each row; fewer where a row has fewer candidates.
        most: no count is higher.

    Returns:
        ``[B, S]`` float32: a row's count for its first choice, one less for the second, and so on; 0 for
        positions that were not chosen.
    """
    if counts.device.type == "cpu":  # host memory: nothing waits for it
        most = max(counts.tolist(), default=0)
    steps = min(most, candidates.shape[1])
    unit = torch.nn.functional.normalize(hidden.float(), dim=-1)
    distance, is_closed = _nearest_other(unit, candidates), ~candidates
    chosen = torch.empty((len(candidates), steps), dtype=torch.int64, device=hidden.device)
    for step in range(steps):
        best = chosen[:, step, None]
        torch.argmax(distance.masked_fill(is_closed, float("-inf")), 1, keepdim=True, out=best)
        is_closed.scatter_(1, best, True)
        to_best = 1.0 - (unit @ unit.gather(1, best[..., None].expand(-1, -1, unit.shape[2])).mT).squeeze(2)
        distance = to_best if step == 0 else torch.minimum(distance, to_best)
    number, counts = torch.arange(steps, device=hidden.device), counts[:, None]
    # A row that has all of its own goes on to the last step, and adds 0.
    is_its = number < counts.minimum(candidates.sum(1, keepdim=True))
    left = (counts - number).where(is_its, 0).float()
    return torch.zeros(candidates.shape, device=hidden.device).scatter_add_(1, chosen, left)


@farthest_point_ranking.register_fake
def _(hidden: Tensor, candidates: Tensor, counts: Tensor, most: int) -> Tensor:
    return torch.empty(candidates.shape, dtype=torch.float32, device=hidden.device)


def _nearest_other(unit: Tensor, candidates: Tensor) -> Tensor:
    """Return the distance of each of ``[B, S, C]`` unit vectors to the nearest other candidate, in chunks of rows."""
    nearest = []
    for start in range(0, unit.shape[1], _CHUNK):
        similarity = (unit[:, start : start + _CHUNK] @ unit.mT).masked_fill_(~candidates[:, None], float("-inf"))
        similarity.diagonal(offset=start, dim1=1, dim2=2).fill_(float("-inf"))
        nearest.append(1.0 - similarity.amax(2))
    return torch.cat(nearest, dim=1)

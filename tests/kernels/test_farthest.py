"""Greedy max-min selection against its definition."""

import torch
from sharp_compile.kernels.farthest import farthest_point_ranking
from torch.testing import assert_close


def by_definition(hidden, candidates, count):
    """The chosen positions of one row, in order."""
    positions = candidates.nonzero().squeeze(1).tolist()

    def distance(a, b):
        return 1 - torch.cosine_similarity(hidden[a], hidden[b], dim=0).item()

    first = max(positions, key=lambda p: min((distance(p, q) for q in positions if q != p), default=0.0))
    chosen = [first]
    while len(chosen) < min(count, len(positions)):
        rest = [p for p in positions if p not in chosen]
        chosen.append(max(rest, key=lambda p: min(distance(p, q) for q in chosen)))
    return chosen


def test_equals_the_definition():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(3, 40, 8, generator=generator)
    candidates = torch.rand(3, 40, generator=generator) > 0.3
    scores = farthest_point_ranking(hidden, candidates, torch.tensor([5, 1, 100]), 100)
    for row, count in enumerate([5, 1, 100]):
        chosen = by_definition(hidden[row], candidates[row], count)
        expected = torch.zeros(40)
        for rank, position in enumerate(chosen):
            expected[position] = count - rank
        assert_close(scores[row], expected)


def test_more_candidates_than_a_chunk():
    angle = torch.linspace(0, 3.0, 1500)
    hidden = torch.stack([angle.cos(), angle.sin()], dim=-1)[None]
    scores = farthest_point_ranking(hidden, torch.ones(1, 1500, dtype=torch.bool), torch.tensor([3]), 3)
    assert scores[0].topk(3).indices.tolist()[1:] != [0, 0]
    assert {0, 1499} & set(scores[0].nonzero().squeeze(1).tolist())


def test_rows_without_candidates_and_without_a_budget():
    none = torch.zeros(2, 4, dtype=torch.bool)
    none[1, 2] = True
    assert farthest_point_ranking(torch.randn(2, 4, 3), none, torch.tensor([2, 0]), 2).eq(0).all()


def test_registration():
    args = (torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool), torch.tensor([2, 3]), 3)
    torch.library.opcheck(torch.ops.sharp_compile.farthest_point_ranking.default, args)

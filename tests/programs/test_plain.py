"""Operators of ours in plain PyTorch: the same as their definitions."""

import pytest
import torch
from sharp_compile.kernels.greedy_cosine_dedup import reference

from sharp_compile.programs import plain


@pytest.mark.parametrize("seed", range(5))
def test_dedup_is_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, length = 3, 23
    # Few directions, so that many tokens are near copies of others; and vectors of zeros.
    directions = torch.randn(5, 8, generator=generator)
    vectors = directions[torch.randint(5, (rows, length), generator=generator)]
    vectors = vectors + 0.1 * torch.randn(rows, length, 8, generator=generator)
    vectors[:, 3] = 0
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(rows)])
    candidates = torch.tensor([length, 11, 0])
    budget = torch.tensor([4, 20, 2])
    given = vectors, order, candidates, budget, 0.9
    expected = reference.greedy_cosine_dedup(*given)
    assert expected.any()
    assert torch.equal(plain.greedy_cosine_dedup(*given), expected)


def test_positions_after_the_candidates_may_be_any():
    vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    given = vectors, torch.tensor([[0, 1, 1]]), torch.tensor([2]), torch.tensor([2]), 0.9
    assert plain.greedy_cosine_dedup(*given).tolist() == [[False, True, False]]


@pytest.mark.parametrize("dims", [(-2, -1), (2, 3), (0, 1)])
def test_the_diagonal(dims):
    values = torch.randn(3, 3, 5, 5)
    assert torch.equal(plain.diagonal(values, 0, *dims), torch.diagonal(values, 0, *dims))


def test_checks_are_no_numbers_that_depend_on_data():
    plain.check_all(torch.tensor([True, True]), lambda: "all")
    with pytest.raises(RuntimeError, match="not all"):
        plain.check_all(torch.tensor([True, False]), lambda: "not all")

"""Gathering along any axis, against loops."""

import itertools

import pytest
import torch
from sharp_compile.kernels.gather import gather_tokens

POSITIONS = torch.tensor([[0, 2, 5], [1, 2, 6]])


@pytest.mark.parametrize("axis, batch_axis", [pair for pair in itertools.permutations(range(4), 2)])
@pytest.mark.parametrize("one_row_for_all", [False, True])
def test_any_axes(axis, batch_axis, one_row_for_all):
    sizes = [3, 4, 5, 6]
    sizes[axis], sizes[batch_axis] = 7, 1 if one_row_for_all else 2
    value = torch.randn(sizes)
    actual = gather_tokens(value, POSITIONS, axis, batch_axis)
    for row in range(2):
        source = value.select(batch_axis, 0 if one_row_for_all else row)
        along = axis - (batch_axis < axis)
        assert actual.select(batch_axis, row).equal(source.index_select(along, POSITIONS[row]))


@pytest.mark.parametrize("axis", range(3))
def test_without_rows(axis):
    sizes = [3, 4, 5]
    sizes[axis] = 7
    value = torch.randn(sizes)
    assert gather_tokens(value, POSITIONS[:1], axis, None).equal(value.index_select(axis, POSITIONS[0]))


def test_gradients():
    value = torch.randn(2, 7, 3, requires_grad=True)
    gather_tokens(value, POSITIONS, 1, 0).sum().backward()
    kept = torch.zeros(2, 7).scatter(1, POSITIONS, 1.0)
    assert value.grad.equal(kept[:, :, None].expand_as(value))


def test_lengths_stay_symbolic():
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    fast = torch.compile(lambda v, p: gather_tokens(v, p, 2, 0), backend=backend, dynamic=True)
    for length, kept in ((9, 4), (20, 3), (33, 30)):
        value, positions = torch.randn(1, 2, length, 3), torch.arange(kept).expand(2, -1).contiguous()
        assert fast(value, positions).shape == (2, 2, kept, 3)
    assert len(compiled) == 1

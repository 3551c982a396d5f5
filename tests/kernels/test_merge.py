"""Merging of tokens, against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharp_compile.kernels.gather import gather_tokens
from sharp_compile.kernels.merge import merge_tokens
from torch.testing import assert_close


def by_definition(value, positions, into):
    rows = []
    for states, kept, target in zip(value.double(), positions.tolist(), into.tolist(), strict=True):
        members = {k: [k] for k in kept}
        for token, representative in enumerate(target):
            if token not in kept and representative in kept:
                members[representative].append(token)
        rows.append(torch.stack([states[members[k]].mean(0) for k in kept]))
    return torch.stack(rows).to(value.dtype)


@st.composite
def cases(draw):
    """Any tokens kept, anything standing for anything."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    kept = draw(st.integers(1, length))
    positions = [sorted(draw(st.permutations(range(length)))[:kept]) for _ in range(rows)]
    into = [draw(st.lists(st.integers(0, length - 1), min_size=length, max_size=length)) for _ in range(rows)]
    return torch.tensor(positions), torch.tensor(into)


@settings(deadline=None, max_examples=200)
@given(cases(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(1, 5))
def test_equals_the_definition(case, dtype, channels):
    positions, into = case
    value = torch.randn(*into.shape, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    actual = merge_tokens(value, positions, into)
    assert actual.dtype == dtype
    assert_close(actual, by_definition(value, positions, into))


def test_a_run_of_tokens():
    value = torch.tensor([[[0.0], [1], [2], [3], [40], [5], [60]]])
    into = torch.tensor([[0, 1, 1, 1, 4, 4, 5]])
    # 2 and 3 stand under 1; 5 is kept and stands for itself, and for 6; 4 is dropped.
    assert merge_tokens(value, torch.tensor([[0, 1, 5]]), into).flatten().tolist() == [0, 2, 32.5]


def test_kept_tokens_and_those_whose_representative_is_dropped_are_in_no_mean():
    value = torch.arange(6.0).view(1, 6, 1)
    into = torch.tensor([[3, 0, 4, 3, 4, 4]])  # 1 leads to 0, which leads to 3: only one step counts
    assert merge_tokens(value, torch.tensor([[0, 3]]), into).flatten().tolist() == [0.5, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_types_are_taken_in_float32(dtype):
    """A running sum in the type itself would stop growing at 2048 (or 256) ones."""
    value = torch.ones(1, 5001, 2, dtype=dtype)
    merged = merge_tokens(value, torch.tensor([[0]]), torch.zeros(1, 5001, dtype=torch.int64))
    assert merged.eq(1).all()


def test_all_kept_is_the_same_to_the_bit():
    value = torch.randn(2, 9, 4).bfloat16()
    positions = torch.arange(9).expand(2, -1)
    assert merge_tokens(value, positions, torch.zeros(2, 9, dtype=torch.int64)).equal(value)
    own = merge_tokens(value, positions[:, 3:7], positions)
    assert own.equal(gather_tokens(value, positions[:, 3:7], 1, 0))


def test_what_is_dropped_for_good_may_hold_anything():
    value = torch.full((1, 4, 2), float("nan"))
    value[:, :2] = 1
    assert merge_tokens(value, torch.tensor([[0]]), torch.tensor([[0, 0, 2, 2]])).eq(1).all()


def test_gradients():
    value = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([[0, 2, 5], [1, 2, 4]])
    into = torch.tensor([[0, 0, 2, 2, 2, 5], [1, 1, 2, 1, 4, 0]])
    assert torch.autograd.gradcheck(lambda value: merge_tokens(value, positions, into), (value,))


def test_lengths_stay_symbolic():
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    fast = torch.compile(merge_tokens, backend=backend, dynamic=True)
    for length, kept in ((9, 4), (20, 3), (33, 30)):
        value, into = torch.randn(2, length, 3), torch.randint(length, (2, length))
        positions = torch.arange(kept).expand(2, -1).contiguous()
        assert_close(fast(value, positions, into), by_definition(value, positions, into))
    assert len(compiled) == 1

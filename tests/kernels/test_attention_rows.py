"""Rows of attention against the whole matrix."""

import pytest
import torch
from sharp_compile.kernels.attention_rows import attention_rows, to_bool_mask
from torch.testing import assert_close


def whole(query, key, mask, scale):
    """The full matrix, ``[B, H, S, S]``."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (query @ key.transpose(-1, -2) * scale + mask).softmax(-1)


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length, head_dim", [(1, 4), (17, 5), (64, 80)])
@pytest.mark.parametrize("form", ["none", "bool", "float", "float by head"])
def test_equals_rows_of_the_matrix(heads, kv_heads, length, head_dim, form):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, length, head_dim, generator=generator)
    key = torch.randn(2, kv_heads, length, head_dim, generator=generator)
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    additive = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, float("-inf"))
    mask = {"none": None, "bool": seen, "float": additive, "float by head": additive.expand(2, heads, -1, -1)}[form]
    rows = torch.tensor([length - 1, length // 2, 0])
    actual = attention_rows(query[:, :, rows], key, None if mask is None else mask[:, :, rows], 0.3)
    expected = whole(query, key, 0 if mask is None else additive, 0.3)[:, :, rows]
    assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_the_usual_scale_is_the_default():
    query, key = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16)
    assert_close(attention_rows(query, key), attention_rows(query, key, scale=0.25))


def test_a_row_that_sees_nothing_is_zero():
    query = torch.randn(1, 1, 3, 4)
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    assert attention_rows(query, query, mask).eq(0).all()


def test_a_mask_with_one_row_serves_all():
    query = torch.randn(2, 1, 4, 4)
    mask = torch.tensor([True, False, True, True]).expand(2, 1, 1, 4)
    assert attention_rows(query, query, mask)[..., 1].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_both_ways_to_hide(dtype):
    mask = torch.tensor([0.0, torch.finfo(dtype).min, float("-inf"), -1.5], dtype=dtype)
    assert to_bool_mask(mask).tolist() == [True, False, False, True]

"""The Triton kernels of received attention, interpreted, against the definition."""

import pytest
import torch
from sharp_compile.kernels.attention_column_sums import reference
from torch.testing import assert_close

try:
    from sharp_compile.kernels.attention_column_sums import triton as kernels

    from tests.kernels.interpreter import interpret
except ImportError:
    pytest.skip("needs Triton", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    interpret(monkeypatch, kernels)


def inputs(batch=1, heads=2, kv_heads=1, rows=3, length=63, head_dim=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows * length + head_dim)
    query = torch.randn(batch, heads, rows, head_dim, generator=generator).to(dtype)
    key = torch.randn(batch, kv_heads, length, head_dim, generator=generator).to(dtype)
    return query, key, torch.rand(batch, rows, generator=generator)


def check(query, key, weight, mask=None, scale=0.3):
    """Compares with the definition, number by number: the smallest are as exact as the largest."""
    actual = kernels.attention_column_sums(query, key, weight, mask, scale)
    expected = reference.attention_column_sums(query, key, weight, mask, scale)
    assert expected.max() > 0
    assert_close(actual, expected, rtol=2e-5, atol=1e-7 * expected.max().item())
    assert actual.equal(kernels.attention_column_sums(query, key, weight, mask, scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "heads, kv_heads, rows, length, head_dim",
    [
        (7, 1, 11, 257, 64),
        (4, 4, 1, 63, 80),
        (4, 1, 5, 129, 72),
        (3, 3, 2, 40, 128),
        (2, 1, 3, 70, 256),
        (2, 2, 1, 1, 16),
    ],
)
def test_odd_shapes(dtype, heads, kv_heads, rows, length, head_dim):
    check(*inputs(2, heads, kv_heads, rows, length, head_dim, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hides", ["bool", "infinity", "lowest"])
@pytest.mark.parametrize("sizes", [(2, 4, 5, 140), (1, 1, 5, 140), (2, 1, 1, 140)])
def test_masks(dtype, hides, sizes):
    query, key, weight = inputs(2, 4, 2, 5, 140, 16, dtype)
    generator = torch.Generator().manual_seed(1)
    visible = torch.rand(sizes, generator=generator) > 0.4
    visible[..., 17] = True
    mask = visible
    if hides != "bool":
        hidden = float("-inf") if hides == "infinity" else torch.finfo(dtype).min
        mask = torch.randn(sizes, generator=generator).to(dtype).masked_fill(~visible, hidden)
    check(query, key, weight, mask.expand(2, 4, 5, 140) if sizes[2] == 1 else mask)


def test_rows_and_tiles_that_see_nothing():
    query, key, weight = inputs(2, 2, 1, 4, 300, 16)
    mask = torch.ones(2, 1, 4, 300, dtype=torch.bool)
    mask[..., :128] = False  # a whole tile
    mask[0, 0, 2] = False  # a whole row
    mask[1, 0, :3] = False
    check(query, key, weight, mask)
    nothing = torch.zeros(1, 1, 4, 300, dtype=torch.bool)
    assert kernels.attention_column_sums(query, key, weight, nothing, 0.3).eq(0).all()


def test_large_logits():
    query, key, weight = inputs(length=200)
    check(query * 30, key, weight, scale=1.0)


def test_any_strides():
    query, key, weight = inputs(2, 4, 2, 5, 140, 24)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(140, 5, 1, 2, generator=generator).permute(3, 2, 1, 0) > 0.2
    packed = key.transpose(1, 2).reshape(2, 140, 48)
    every_second = torch.stack([query, query], dim=-1).flatten(-2)[..., ::2]
    check(every_second, packed.view(2, 140, 2, 24).transpose(1, 2), weight.t().contiguous().t(), mask)
    check(query[:1].expand(2, -1, -1, -1), key, weight[:1].expand(2, -1), mask)


def test_more_rows_than_a_block():
    check(*inputs(1, 14, 2, 21, 150, 16, torch.float16))

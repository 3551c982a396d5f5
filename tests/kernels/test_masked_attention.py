"""Attention under formulas and with padding, against fused attention with the whole mask."""

import itertools

import pytest
import sympy
import torch
import torch.nn.functional as F
from sharp_compile.kernels import causal_attention as causal
from sharp_compile.kernels import mask_formula, masked_attention
from sharp_compile.kernels.mask_formula import CAUSAL, KEY, QUERY, key_symbol, query_symbol
from torch.testing import assert_close

VISIBLE = sympy.Ne(key_symbol(0), 0)
FORMULAS = {
    "causal": sympy.And(CAUSAL, VISIBLE),
    "window": sympy.And(CAUSAL, KEY > QUERY - 40, VISIBLE),
    "narrow window": sympy.And(CAUSAL, KEY > QUERY - 1, VISIBLE),
    "blocks": sympy.And(sympy.Or(CAUSAL, sympy.Eq(query_symbol(0), key_symbol(1))), VISIBLE),
    "none": sympy.And(CAUSAL, KEY > QUERY - 40, key_symbol(1) < 0),
}


def operands(rows, queries, keys, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, 4, queries, 8), (rows, kv_heads, keys, 8), (rows, kv_heads, keys, 8)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def positions(rows, number, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator)[:number].sort().values for _ in range(rows)])


@pytest.mark.parametrize("form", FORMULAS)
@pytest.mark.parametrize(("queries", "keys", "slack"), [(1, 1, 0), (300, 300, 0), (64, 600, 0), (513, 700, 9)])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_masked(form, queries, keys, slack, kv_heads):
    query, key, value = operands(2, queries, keys + slack, kv_heads)
    rows, columns = positions(2, queries, 2 * keys), positions(2, keys, 2 * keys, seed=1)
    generator = torch.Generator().manual_seed(2)
    of_query = [torch.randint(0, 5, (2, queries), generator=generator)]
    of_key = [torch.rand(2, keys, generator=generator) < 0.8, torch.randint(0, 5, (2, keys), generator=generator)]
    formula = FORMULAS[form]
    values = mask_formula.values_at(rows, columns, of_query, of_key)
    mask = mask_formula.evaluate(formula, values).expand(2, 1, queries, keys)
    expected = F.scaled_dot_product_attention(
        query, key[:, :, :keys], value[:, :, :keys], mask, scale=0.4, enable_gqa=True
    )
    text = mask_formula.write(formula)
    arguments = query, key, value, rows, columns, of_query, of_key, text, 0.4
    assert_close(masked_attention.masked_attention(*arguments), expected)
    if queries == 64:
        torch.library.opcheck(masked_attention.masked_attention, arguments)


def padded(length):
    """In front of a row, behind one, between its tokens, nowhere, and everywhere."""
    visible = torch.ones(5, length, dtype=torch.bool)
    visible[0, : length // 3] = False
    visible[1, -(length // 3) :] = False
    visible[2, 2:5] = False
    visible[4] = False
    return visible


@pytest.mark.parametrize("length", [7, 70])
@pytest.mark.parametrize("slack", [0, 5])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_causal(length, slack, kv_heads):
    query, key, value = operands(5, length, length + slack, kv_heads)
    visible = padded(length)
    mask = visible[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(query, key[:, :, :length], value[:, :, :length], mask, enable_gqa=True)
    arguments = query, key, value, visible, None
    actual = causal.causal_attention(*arguments)
    assert_close(actual, expected)
    assert actual.isfinite().all()
    torch.library.opcheck(causal.causal_attention, arguments)


def test_values_of_other_channels():
    query, key, value = operands(5, 9, 9)
    wide = torch.cat([value, value], -1)
    mask = padded(9)[:, None, None] & torch.ones(9, 9, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(query, key, wide, mask, enable_gqa=True)
    assert_close(causal.causal_attention(query, key, wide, padded(9), None), expected)


def flash_on_cpu(query, key, value, bounds, longest, scale):
    """What the kernel of a GPU does: causal attention within each sequence."""
    assert bounds.dtype == torch.int32 and bounds.diff().max() <= longest
    output = torch.full_like(query, float("nan"))
    for begin, end in itertools.pairwise(bounds):
        parts = (each[begin:end].transpose(0, 1) for each in (query, key, value))
        output[begin:end] = F.scaled_dot_product_attention(
            *parts, is_causal=True, scale=scale, enable_gqa=True
        ).transpose(0, 1)
    return output


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_sequences_of_a_gpu_are_the_real_tokens_of_each_row(kv_heads, monkeypatch):
    monkeypatch.setattr(causal, "flash_of_lengths", flash_on_cpu)
    query, key, value = operands(5, 30, 30, kv_heads)
    visible = padded(30)
    actual = causal.by_lengths(query, key, value, visible, 0.4)
    expected = causal.causal_attention(query, key, value, visible, 0.4)
    real = visible[:, None, :, None].expand_as(actual)
    assert_close(actual[real], expected[real])
    assert actual.isfinite().all()

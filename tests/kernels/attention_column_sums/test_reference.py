"""The definition of received attention against loops, and its operator and its CPU form against it."""

import math

import pytest
import torch
from sharp_compile.kernels.attention_column_sums import attention_column_sums, reference
from torch.testing import assert_close


def by_loops(query, key, weight, visible, bias, scale):
    """In Python numbers. `visible` and `bias` are ``[B, H, T, S]``."""
    batch, heads, rows, _ = query.shape
    length, groups = key.shape[2], heads // key.shape[1]
    received = torch.zeros(batch, length, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(rows):
                seen = [s for s in range(length) if visible[b, h, t, s]]
                logits = [
                    scale * (query[b, h, t].double() @ key[b, h // groups, s].double()).item() + bias[b, h, t, s].item()
                    for s in seen
                ]
                total = sum(math.exp(logit) for logit in logits)
                for s, logit in zip(seen, logits, strict=True):
                    received[b, s] += weight[b, t].item() * math.exp(logit) / total / heads
    return received.float()


@pytest.mark.parametrize("function", [reference.attention_column_sums, attention_column_sums])
@pytest.mark.parametrize("form", ["none", "bool", "float", "lowest"])
def test_equals_loops(function, form):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 3, 8, generator=generator), torch.randn(2, 2, 11, 8, generator=generator)
    weight = torch.rand(2, 3, generator=generator)
    visible = torch.rand(2, 1, 3, 11, generator=generator) > 0.4
    visible[1, 0, 2] = False
    bias = torch.zeros(2, 4, 3, 11)
    if form == "none":
        mask, visible = None, torch.ones_like(visible)
    elif form == "bool":
        mask = visible
    elif form == "lowest":
        mask = torch.zeros(2, 1, 3, 11).masked_fill(~visible, torch.finfo(torch.float32).min)
    else:
        mask = torch.randn(2, 4, 3, 11, generator=generator)
        bias, mask = mask, mask.masked_fill(~visible, float("-inf"))
    expected = by_loops(query, key, weight, visible.expand(2, 4, 3, 11), bias, 0.3)
    assert_close(function(query, key, weight, mask, 0.3), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("function", [reference.attention_column_sums, attention_column_sums])
def test_rows_that_count_nothing_may_hold_anything(function):
    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    weight = torch.tensor([[0.5, 0.0, 0.5]])
    expected = function(query[:, :, [0, 2]], key, weight[:, [0, 2]], None, 0.3)
    query[:, :, 1] = torch.nan
    assert_close(function(query, key, weight, None, 0.3), expected)


def test_the_usual_scale_is_the_default():
    query, key, weight = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 5, 16), torch.ones(1, 3)
    expected = attention_column_sums(query, key, weight, None, 0.25)
    assert_close(attention_column_sums(query, key, weight), expected)
    assert_close(expected.sum(), torch.tensor(3.0))


def test_no_operator_is_compiled_on_the_cpu():
    """Inductor fuses plain PyTorch, and could not fuse an operator of ours."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    torch.compile(attention_column_sums, backend=backend, dynamic=True)(
        torch.randn(1, 2, 3, 16), torch.randn(1, 2, 5, 16), torch.ones(1, 3)
    )
    assert len(graphs) == 1
    assert "sharp_compile" not in str(graphs[0].graph)


def test_registration():
    ops = pytest.importorskip("sharp_compile.kernels.attention_column_sums.ops", exc_type=ImportError)
    query, key, weight = torch.randn(1, 4, 3, 16), torch.randn(1, 2, 7, 16), torch.rand(1, 3)
    for mask in (None, torch.rand(1, 1, 3, 7) > 0.3):
        torch.library.opcheck(ops.attention_column_sums, (query, key, weight, mask, 0.25))

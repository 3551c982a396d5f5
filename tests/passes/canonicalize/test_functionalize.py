"""Writes into tensors become tensors of their own, and the graph computes what it did."""

import pytest
import torch
from sharp_compile.passes.canonicalize.functionalize import make_functional
from sharp_compile.passes.fx.nodes import writes_into_first
from torch.testing import assert_close


def by_mask(hidden, mask):
    hidden = hidden.clone()
    hidden[mask] = hidden[mask] + 1
    return hidden * 2


def by_mask_and_slice(hidden, mask):
    hidden = hidden.clone()
    hidden[mask, :] = 3 * hidden[mask, :]
    return hidden.sum(1)


def into_a_buffer(hidden, mask):
    buffer = torch.zeros(2, 9, 4)
    buffer.index_copy_(1, torch.arange(5) + 2, hidden)
    return buffer.cumsum(1)


def in_place_arithmetic(hidden, mask):
    total = hidden.exp()
    total += hidden
    total.mul_(2)
    return total


def of_the_same_tensor_under_two_names(hidden, mask):
    total = hidden.exp()
    same = total.contiguous()
    total.add_(1)
    return same + total


def copied(hidden, mask):
    state = torch.zeros(2, 3, 4)
    state.copy_(hidden[:, -3:])
    return state + 1


def into_a_part(hidden, mask):
    total = hidden.exp()
    total[:, :2].add_(1)
    return total


def through_a_part(hidden, mask):
    total = hidden.exp()
    part = total[:, :2]
    total.add_(1)
    return part


def from_outside(hidden, mask):
    mask.logical_or_(hidden[..., 0] > 0)
    return hidden * mask.unsqueeze(-1)


REWRITTEN = [
    by_mask,
    by_mask_and_slice,
    into_a_buffer,
    in_place_arithmetic,
    of_the_same_tensor_under_two_names,
    copied,
]
LEFT = [into_a_part, through_a_part, from_outside]


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 4, generator=generator), torch.rand(2, 5, generator=generator) > 0.5


@pytest.mark.parametrize("function", [*REWRITTEN, *LEFT], ids=lambda function: function.__name__)
def test_the_same_result(function):
    writes = []

    def backend(module, _):
        source = next(node for node in module.graph.nodes if node.op == "placeholder" and "hidden" in node.name)
        make_functional(module.graph, source)
        module.graph.lint()
        module.recompile()
        writes.extend(node for node in module.graph.nodes if writes_into_first(node))
        return module.forward

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        actual = torch.compile(function, backend=backend)(*inputs())
    assert_close(actual, function(*inputs()))
    assert bool(writes) == (function in LEFT)

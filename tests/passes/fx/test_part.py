"""A part of a graph computes what the whole one does, unless a write has a part in it."""

import operator

import torch
from sharp_compile.passes.fx.part import part_of


def graph_of(function, *inputs):
    held = []
    torch.compile(function, backend=lambda module, _: held.append(module) or module.forward)(*inputs)
    return held[0]


def node_of(module, target):
    return next(node for node in module.graph.nodes if node.target == target)


def test_a_part_takes_all_inputs_and_computes_what_it_must():
    x, y = torch.ones(3), torch.arange(3.0)
    module = graph_of(lambda x, y: ((x + 1) * 2, (y - 1).exp()), x, y)
    part = part_of(module, [node_of(module, operator.sub), 7])
    result, number = part(x, y)
    assert result.equal(y - 1)
    assert number == 7
    assert [node.target for node in part.graph.nodes if node.op == "call_function"] == [operator.sub]


def test_what_a_write_has_a_part_in_is_no_part():
    def writes(x, y):
        x.add_(1)
        return x * 2, y - 1

    module = graph_of(writes, torch.ones(3), torch.arange(3.0))
    assert part_of(module, [node_of(module, operator.mul)]) is None
    assert part_of(module, [node_of(module, operator.sub)]) is not None

"""Functions that are traced into a graph."""

import torch
from sharp_compile.passes.fx.emit import Emitter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule


def flat(value):
    return value.flatten() * 2


def test_other_strides_than_those_of_the_trace():
    """A compiler may lay out a tensor otherwise than Dynamo did: then it is no view any more."""
    graph = Graph()
    value = graph.placeholder("value")
    with FakeTensorMode():
        value.meta["example_value"] = torch.empty(2, 3, 4)
    graph.output(value)
    module = GraphModule(torch.nn.Module(), graph)
    emit = Emitter(module, trace=True)
    output = graph.output_node()
    with emit.before(output):
        output.args = (emit(flat, value),)
    module.recompile()
    given = torch.randn(3, 2, 4).transpose(0, 1)
    assert module(given).equal(flat(given))

"""A pruned graph's nodes say the shapes that they have."""

import pytest
import torch
from sharp_compile.passes.fx.nodes import example_value
from sharp_compile.passes.fx.sizes import hint
from sharp_compile.passes.rewrite.metadata import check_shapes
from sharp_compile.passes.token_dim.plan import NodePlan, Plans
from sharp_compile.passes.token_dim.sentinels import SentinelSizes
from torch.fx import Graph, Interpreter

from tests.backend.test_cross_graph import Broken
from tests.toy import Toy, toy_inputs

CUTS = [{"layer": 1, "retention": 0.25}, {"stages": [(0, 0.5), (2, 0.25)]}, {"layer": 0, "hoist": False}]


class Shapes(Interpreter):
    """Runs a graph, and compares each tensor with the example value of its node."""

    seen = 0

    def run_node(self, n):
        result = super().run_node(n)
        value = example_value(n)
        if isinstance(result, torch.Tensor) and isinstance(value, torch.Tensor):
            assert tuple(result.shape) == tuple(map(hint, value.shape)), n.format_node()
            assert result.dtype == value.dtype
            self.seen += 1
        return result


def graphs_and_inputs(model, dynamic=None, **options):
    """What the inner backend was given, with the inputs of a run."""
    found = []

    def inner(module, example_inputs):
        def run(*args):
            found.append((module, args))
            return module.forward(*args)

        return run

    options = {"inner": inner, "on_skip": "raise", "selector": "fastv"} | options
    with torch.no_grad():
        torch.compile(model, backend="sharp", options=options, dynamic=dynamic)(**toy_inputs(rows=2, pad=[0, 3]))
    return found


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("cut", CUTS, ids=["one cut", "stages", "after its layer"])
def test_shapes_are_those_of_a_run(cut, dynamic):
    ((module, inputs),) = graphs_and_inputs(Toy(layers=5), dynamic, **cut)
    shapes = Shapes(module)
    shapes.run(*inputs)
    assert shapes.seen > 100


def test_a_graph_that_is_traced_again_says_nothing_of_the_full_length():
    """It is traced with the lengths of a call, which no example value of the first graph shows."""
    for module, inputs in graphs_and_inputs(Broken(layers=5)):
        Shapes(module).run(*inputs)


def test_a_slice_of_the_last_positions_takes_fewer_where_there_are_fewer():
    plans = Plans(SentinelSizes((10007,), None, 40))
    node = Graph().placeholder("window")
    plans[node] = NodePlan(1, (), (1, 31, 16))
    node.meta["example_value"] = torch.empty(1, 21, 16)
    check_shapes(plans, [21], 1)
    node.meta["example_value"] = torch.empty(1, 40, 16)
    with pytest.raises(AssertionError, match="planned was"):
        check_shapes(plans, [21], 1)


def test_another_shape_than_planned_is_a_fault():
    graph, sentinels = Graph(), SentinelSizes((10007,), None, 9)
    node = graph.placeholder("hidden")
    plans = Plans(sentinels)
    plans[node] = NodePlan(1, (), (1, 10007, 16))
    node.meta["example_value"] = torch.empty(1, 4, 16)
    check_shapes(plans, [4], 1)
    node.meta["example_value"] = torch.empty(1, 9, 16)
    with pytest.raises(AssertionError, match=r"\[1, 9, 16\], planned was \[1, 4, 16\]"):
        check_shapes(plans, [4], 1)

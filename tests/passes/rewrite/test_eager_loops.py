"""What the passes add is left to PyTorch's own kernels on a CPU, but for what would be stored only for that."""

import pytest
import torch
from sharp_compile.passes.fx.emit import Emitter
from sharp_compile.passes.rewrite.eager_loops import leave_to_eager
from torch._inductor import metrics
from torch.fx import GraphModule

from tests.graphs import dynamo_graph
from tests.toy import Toy, toy_inputs

S, C = 6, 4


def eager(graph):
    """The operators that are to be called as they are."""
    return [str(node.target) for node in graph.nodes if node.meta.get("custom", {}).get("fallback_to_eager")]


def test_small_operators_are_marked_and_no_views_and_no_masks():
    module = dynamo_graph(lambda states, mask: states * mask[0, 0], torch.randn(1, S, C), torch.ones(S, S).bool())
    emit = Emitter(module, trace=True)
    states, mask = module.graph.find_nodes(op="placeholder")
    with emit.before(module.graph.output_node()):
        counts = emit(lambda mask: (mask & mask.T).sum(1), mask)
        emit(lambda counts, states: (counts.unsqueeze(0) + 1, states * 2), counts, states, results=2)
    leave_to_eager(emit.added, states)
    assert eager(module.graph) == ["aten.add.Tensor", "aten.mul.Tensor"]


def test_the_selection_of_a_pruned_graph_is_marked():
    seen = []

    def inner(module: GraphModule, _):
        seen.append(module)
        return module.forward

    torch.compile(Toy(), backend="sharp", options={"inner": inner, "selector": "uniform"})(**toy_inputs())
    marked = eager(seen[0].graph)
    assert {"aten.sort.stable", "aten.gather.default", "aten.cumsum.default"} <= set(marked)
    assert not {"aten.expand.default", "aten.unsqueeze.default", "aten.select.int"} & set(marked)


@pytest.mark.slow
def test_inductor_writes_no_loops_for_it():
    def loops(selector):
        torch._dynamo.reset()
        metrics.reset()
        with torch.no_grad():
            model, inputs = Toy().eval(), toy_inputs()
            result = torch.compile(model, backend="sharp", options={"selector": selector, "on_skip": "raise"})(**inputs)
            torch._dynamo.reset()
            options = {"selector": selector, "inner": "eager"}
            expected = torch.compile(model, backend="sharp", options=options)(**inputs)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
        return metrics.generated_kernel_count

    assert loops("fastv") <= loops("uniform") + 3  # of what a layer computes and "uniform" does not read

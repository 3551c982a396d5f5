"""What the inner backend is handed: equal layers as calls of one, where that is asked for."""

import pytest
import torch
from torch.fx import GraphModule

import sharp_compile
from sharp_compile.backend import inner
from tests.toy import Toy, toy_inputs

CALL = torch.ops.higher_order.invoke_subgraph


@pytest.fixture
def handed(monkeypatch):
    """The graphs that Inductor would compile, which run as they are; calls of graphs are refused on demand."""
    graphs: list[GraphModule] = []
    refuses = {CALL: False}

    def backend(module, inputs, config_patches):
        module.meta["config_patches"] = config_patches
        if refuses[CALL] and calls(module):
            raise NotImplementedError("invoke_subgraph")
        graphs.append(module)
        return module.forward

    monkeypatch.setattr(inner, "lookup_backend", lambda name: backend)
    graphs_and_switch = graphs, refuses
    yield graphs_and_switch
    torch._dynamo.reset()
    sharp_compile.reset()


def calls(module):
    return module.graph.find_nodes(op="call_function", target=CALL)


def run(**options):
    model = Toy(layers=6)
    model.compile(backend="sharp", options={"retention": 0.25, **options})
    with torch.no_grad():
        result = model(**toy_inputs())
    (report,) = (report for report in sharp_compile.reports() if report.pruned)
    return result, report


def test_equal_layers_are_handed_over_as_calls_of_one(handed):
    graphs, _ = handed
    expected, report = run(reuse_layers=False)
    assert report.distinct_layers == report.num_layers == 6
    (whole,) = graphs
    assert not calls(whole)
    torch._dynamo.reset()
    sharp_compile.reset()
    actual, report = run()
    # Layer 0 sees all tokens, layer 1 has the cut, the four after it are one.
    assert report.distinct_layers == 3
    assert len(calls(graphs[1])) == 4
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_what_can_not_be_compiled_so_is_compiled_one_by_one(handed):
    graphs, refuses = handed
    refuses[CALL] = True
    run()
    (whole,) = graphs
    assert not calls(whole)


def test_with_gradients_each_layer_is_compiled(handed):
    graphs, _ = handed
    model = Toy(layers=6)
    model.compile(backend="sharp", options={"retention": 0.25})
    model(**toy_inputs())
    assert not any(calls(module) for module in graphs)


@pytest.mark.parametrize("given, used", [({}, False), ({"reorder_for_locality": True}, True)])
def test_projections_stay_side_by_side_on_a_cpu_unless_the_user_says_otherwise(handed, given, used):
    graphs, _ = handed
    run(inductor=given)
    assert [module.meta["config_patches"] for module in graphs] == [{"reorder_for_locality": used}]


def test_an_option_that_is_no_flag():
    with pytest.raises(ValueError, match="option reuse_layers='yes': must be True or False"):
        Toy().compile(backend="sharp", options={"reuse_layers": "yes"})

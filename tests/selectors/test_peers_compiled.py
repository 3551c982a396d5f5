"""What becomes of the rules of other papers in a graph."""

import pytest
import torch

import sharp_compile
from tests.backend.test_cross_graph import Broken
from tests.toy import Toy, toy_inputs

PEERS = ["pyramiddrop", "feather", "sparsevlm", "visiondrop"]


def kept(model, inputs, **options):
    """The positions that are kept [B, S'], and their scores [B, S]."""
    torch._dynamo.reset()
    sharp_compile.reset()
    with torch.no_grad():
        torch.compile(model, backend="sharp", options=options | {"on_skip": "raise"})(**inputs)
    (report,) = (report for report in sharp_compile.reports() if report.pruned)
    return report.kept, report.scores


# Dynamo traces the rule itself where the graph is `Broken`.
@pytest.mark.slow
@pytest.mark.parametrize(
    "model, selector", [(Toy, "feather"), (Toy, "sparsevlm"), (Broken, "feather"), (Broken, "visiondrop")]
)
def test_inductor_keeps_what_eager_mode_keeps(model, selector):
    inputs = toy_inputs(rows=2, pad=[0, 3])
    options = {"selector": selector, "retention": 0.25}
    eager, eager_scores = kept(model(), inputs, inner="eager", **options)
    inductor, inductor_scores = kept(model(), inputs, inner="inductor", **options)
    assert inductor.equal(eager)
    torch.testing.assert_close(inductor_scores, eager_scores, equal_nan=True)


@pytest.mark.parametrize("selector", PEERS)
def test_no_tensor_of_the_graph_has_a_pair_of_lengths(selector):
    largest = []

    def inner(module, inputs):
        for node in module.graph.nodes:
            value = node.meta.get("example_value")
            if isinstance(value, torch.Tensor) and value.shape.count(1031) > 1:
                largest.append(node)
        return module.forward

    kept(Toy(), toy_inputs(visual=1025), selector=selector, inner=inner)
    assert largest == []


# One whose operator has no gradient, one that merges, and ours.
@pytest.mark.parametrize("selector", ["diversity", "framefusion", "sharp"])
def test_no_gradient_goes_through_the_selection(selector):
    """The model's own go on; some operators of rules have none."""
    model = Toy()
    fast = torch.compile(model, backend="sharp", options={"selector": selector, "inner": "aot_eager", "hoist": False})
    logits, _ = fast(**toy_inputs())
    (report,) = sharp_compile.reports()
    assert report.pruned and not report.scores.requires_grad
    logits.square().sum().backward()
    actual = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    if selector != "framefusion":  # which merges
        model(**toy_inputs(), cut={report.layer: report.kept})[0].square().sum().backward()
        for ours, weight in zip(actual, model.parameters(), strict=True):
            torch.testing.assert_close(ours, weight.grad, atol=1e-4, rtol=1e-3)

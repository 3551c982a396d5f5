"""No tensor of a pruned graph has two axes of the sequence, where masks are understood; with gradients, masks stay."""

from copy import deepcopy

import pytest
import torch
from transformers import StaticCache

import sharp_compile
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.graphs import Recorder
from tests.support import assert_same_logits, forward

OTHER_SELECTORS = ("visiondrop", "fastv", "feather", "sparsevlm", "framefusion")
OURS = ("sharp_compile.causal_attention", "sharp_compile.masked_attention")


def pruned_graph(name, gradients=False, batch=2, **options):
    """The pruned graph of an architecture, and its inputs."""
    architecture, model, recorder = ALL_ARCHITECTURES[name], shared_model(name), Recorder()
    inputs = architecture.inputs(model, batch=batch, pad=[0, 3][:batch])
    given = dict(inputs)
    if options.pop("static", False):
        length = inputs["input_ids"].shape[1]
        given["past_key_values"] = StaticCache(model.config.get_text_config(), max_cache_len=length + 6)
    fast = torch.compile(
        deepcopy(model),
        backend="sharp",
        options={"inner": recorder, "retention": 0.25, "selector": "uniform"} | options,
    )
    with torch.set_grad_enabled(gradients):
        actual = fast(**given)
    (report,) = [report for report in sharp_compile.reports() if report.pruned]
    with oracle.prune(model, retention=0.25, layer=1, selector="uniform") as run:
        expected = forward(model, inputs)
    assert report.kept.tolist() == run.kept[0].tolist()
    assert_same_logits(actual.logits, expected.logits, inputs)
    return max((each.graph for each in recorder.modules), key=len_of), inputs["input_ids"].shape[1]


def len_of(graph):
    """How many nodes a graph has: that of the decoder has most."""
    return len(graph.nodes)


def of_pairs(graph, *lengths):
    """The nodes with two axes that are both as long as one of some lengths."""
    values = [(node, node.meta.get("example_value")) for node in graph.nodes]
    shapes = [(node, list(value.shape)) for node, value in values if isinstance(value, torch.Tensor)]
    return [node for node, shape in shapes if sum(size in lengths for size in shape) > 1]


def called(graph):
    """How often each operator of ours is called."""
    names = [str(node.target) for node in graph.nodes]
    return tuple(sum(name.startswith(ours) for name in names) for ours in OURS)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        # The second layer is hoisted: its kept tokens attend to all.
        ("llava_onevision", (5, 1)),
        ("gemma3", (0, 6)),  # sliding windows, and pictures that see themselves whole
        pytest.param("llama4", (2, 4), marks=pytest.mark.slow),  # chunks
        pytest.param("exaone4_5", (1, 5), marks=pytest.mark.slow),  # sliding windows
    ],
)
def test_no_mask_of_all_pairs_is_left(name, calls):
    graph, length = pruned_graph(name)
    assert called(graph) == calls
    assert of_pairs(graph, length) == []


def test_a_static_cache_has_slack():
    graph, length = pruned_graph("llava_onevision", static=True)
    assert called(graph) == (5, 1)
    assert of_pairs(graph, length, length + 6) == []


def test_a_cut_at_the_end_of_its_layer():
    graph, length = pruned_graph("llava_onevision", hoist=False)
    assert called(graph) == (6, 0)
    assert of_pairs(graph, length) == []


def test_with_gradients_masks_are_made_where_they_are_read():
    graph, length = pruned_graph("llava_onevision", gradients=True)
    assert called(graph) == (0, 0)
    # Of all tokens, for the first layer.
    masks = of_pairs(graph, length)
    assert masks and all(not node.meta["example_value"].is_floating_point() for node in masks)


@pytest.mark.parametrize(
    "selector",
    [
        "sharp",
        *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_SELECTORS),
    ],
)
def test_no_rule_reads_a_mask_of_all_pairs(selector):
    architecture, model, recorder = ALL_ARCHITECTURES["llava_onevision"], shared_model("llava_onevision"), Recorder()
    inputs = architecture.inputs(model, batch=2, pad=[0, 3])
    fast = torch.compile(deepcopy(model), backend="sharp", options={"inner": recorder, "selector": selector})
    forward(fast, inputs)
    (module,) = [each for each in recorder.modules if called(each.graph) != (0, 0)]
    assert of_pairs(module.graph, inputs["input_ids"].shape[1]) == []


def test_a_function_of_a_user_has_the_mask_if_it_asks():
    seen = []

    def seen_by_most(ctx):
        seen.append(None if ctx.mask is None else tuple(ctx.mask.shape))
        return (ctx.mask.sum((1, 2)) + ctx.mask_of(ctx.last).sum((1, 2))).float()

    architecture, model = ALL_ARCHITECTURES["llava_onevision"], shared_model("llava_onevision")
    inputs = architecture.inputs(model, batch=2, pad=[0, 3])
    fast = torch.compile(deepcopy(model), backend="sharp", options={"inner": "eager", "selector": seen_by_most})
    forward(fast, inputs)
    length = inputs["input_ids"].shape[1]
    assert seen and set(seen) == {(2, 1, length, length)}
    assert any(report.pruned for report in sharp_compile.reports())

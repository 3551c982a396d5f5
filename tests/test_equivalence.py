"""The acceptance matrix: a compiled model computes what the eager model computes that is pruned by hand.

Dynamo's trace of a model takes most of the time of a test and does not depend on the options. The matrix
therefore traces each model once and hands every graph to the backend once for each set of options
(`ManyOptions`); then it runs the model with one set after the other. `test_through_the_public_interface`
goes the way that users go.
"""

from copy import deepcopy
from itertools import product

import pytest
import torch
from sharp_compile.passes.analysis.attention import as_sdpa
from torch._dynamo.backends.registry import lookup_backend

import sharp_compile
from tests import oracle
from tests.architectures import ARCHITECTURES, shared_model, visual_mask
from tests.support import (
    assert_reported,
    assert_same_cache,
    assert_same_generation,
    assert_same_logits,
    forward,
    generate,
    the_pruned_graph,
)

LAYERS = 4  # enough for two long and one short layer at the least
ROWS = {"one row": {}, "left-padded": {"batch": 2, "pad": [0, 3]}}

MATRIX = [
    {"selector": selector, "retention": retention, "layer": layer}
    for selector in ("uniform", "fastv")
    for retention in (0.5, 0.25, 0.1)
    for layer in (1, 2)
] + [
    {"selector": "sharp", "retention": 0.5, "layer": 1},
    {"selector": "sharp", "retention": 0.1, "layer": 2},
]
# Selectors that the oracle does not know: the positions come from the report.
OTHERS = [{"selector": selector, "retention": 0.25} for selector in ("random", "diversity")]
# Rules of other papers.
PEERS = [
    {"selector": "pyramiddrop", "stages": [(0, 0.5), (1, 0.25), (2, 0.125)]},
    {"selector": "feather", "retention": 0.3, "layer": 1},
    {"selector": "feather", "stages": [(0, 0.5), (2, 0.3)]},
    {"selector": "sparsevlm", "retention": 0.25, "layer": 1},
    {"selector": "visiondrop", "retention": 0.25, "layer": 1},
]
IDENTITY = {"retention": 1.0}

pytestmark = pytest.mark.usefixtures("room_for_many_graphs")
# Those that are slow are in the matrix of all architectures, of which each run has a part.
every_kind = pytest.mark.parametrize(
    "name",
    [n if n == "llava_onevision" else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES],
)
# In a bare forward call Qwen2-VL injects the visual features in one graph and decodes in another.
linked_and_not = pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
# Each run has padded rows in the random calls and in the tests of merging and of caches.
one_row_and_padded = pytest.mark.parametrize(
    "rows", [pytest.param(rows, id=how, marks=[pytest.mark.slow] * bool(rows)) for how, rows in ROWS.items()]
)


class ManyOptions:
    """A Dynamo backend that compiles each graph once for each set of options, and runs the chosen one."""

    def __init__(self, cases):
        self.cases = [case | {"inner": "eager", "on_skip": "silent"} | case for case in cases]
        self.indices = [[] for _ in cases]  # in `sharp_compile.reports()`, by case
        self.chosen = 0

    def __call__(self, graph_module, example_inputs):
        sharp = lookup_backend("sharp")
        compiled = []
        for options, indices in zip(self.cases, self.indices, strict=True):
            before = len(sharp_compile.reports())
            compiled.append(sharp(graph_module, example_inputs, options=options))
            indices.extend(range(before, len(sharp_compile.reports())))
        return lambda *arguments: compiled[self.chosen](*arguments)

    def reports(self):
        """The reports of the graphs that were compiled with the chosen options."""
        reports = sharp_compile.reports()
        return [reports[index] for index in self.indices[self.chosen]]


def prepare(name, **rows):
    """The eager model, a copy to be compiled, and inputs."""
    model = shared_model(name, layers=LAYERS)
    return model, deepcopy(model), ARCHITECTURES[name].inputs(model, **rows)


def by_hand(name, model, case, report=None):
    """The oracle for these options; it keeps what the report tells if it does not know the selector."""
    if case["selector"] not in oracle.SELECTORS:
        return oracle.prune(model, positions=report.kept)
    architecture = ARCHITECTURES[name]
    tokens = architecture.tokens_per_block if architecture.shows_frames else None
    return oracle.prune(model, **case, tokens_per_frame=tokens)


@every_kind
@one_row_and_padded
def test_forward(name, rows, subtests):
    model, copy, inputs = prepare(name, **rows)
    backend = ManyOptions([IDENTITY, *MATRIX, *OTHERS])
    fast = torch.compile(copy, backend=backend)
    for backend.chosen, case in enumerate([IDENTITY, *MATRIX, *OTHERS]):
        with subtests.test(**case):
            actual = forward(fast, inputs)
            if case == IDENTITY:
                expected = forward(model, inputs)
            else:
                report = the_pruned_graph(backend.reports())
                with by_hand(name, model, case, report) as run:
                    expected = forward(model, inputs)
                layer = case.get("layer", 1)
                assert_reported(report, inputs, visual_mask(model, inputs), run, layer=layer, num_layers=LAYERS)
            assert_same_logits(actual.logits, expected.logits, inputs)
            assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)


@every_kind
@one_row_and_padded
def test_generate(name, rows, subtests):
    model, copy, inputs = prepare(name, **rows)
    backend = ManyOptions([IDENTITY, *MATRIX])
    copy.compile(backend=backend)
    for backend.chosen, case in enumerate([IDENTITY, *MATRIX]):
        with subtests.test(**case):
            actual = generate(copy, inputs)
            if case == IDENTITY:
                expected = generate(model, inputs)
            else:
                report = the_pruned_graph(backend.reports())
                with by_hand(name, model, case) as run:
                    expected = generate(model, inputs)
                layer = case["layer"]
                assert_reported(report, inputs, visual_mask(model, inputs), run, layer=layer, num_layers=LAYERS)
            assert_same_generation(actual, expected, inputs)


# What calls it, how it is compiled, and how the result is compared.
WAYS = {
    "forward": (forward, lambda model, **how: torch.compile(model, **how)),
    "generate": (generate, lambda model, **how: model.compile(**how) or model),
}


@pytest.mark.parametrize(
    "name, way, inner",
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case != ("llava_onevision", "generate", "inductor")))
        for case in product(ARCHITECTURES, WAYS, ("eager", "inductor"))
    ],
)
def test_through_the_public_interface(name, way, inner):
    case = {"selector": "sharp", "retention": 0.25, "layer": 1}
    model, copy, inputs = prepare(name, **ROWS["left-padded"])
    run_model, compiled = WAYS[way]
    with by_hand(name, model, case) as run:
        expected = run_model(model, inputs)
    actual = run_model(compiled(copy, backend="sharp", options=case | {"inner": inner}), inputs)
    report = the_pruned_graph(sharp_compile.reports())
    assert_reported(report, inputs, visual_mask(model, inputs), run, layer=1, num_layers=LAYERS)
    if way == "forward":
        assert_same_logits(actual.logits, expected.logits, inputs)
        assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)
    else:
        assert_same_generation(actual, expected, inputs)


@pytest.mark.slow
@every_kind
def test_other_lengths_after_the_first(name):
    """The second length makes the graphs dynamic; a shorter and a padded prompt follow."""
    case = {"selector": "sharp", "retention": 0.25, "layer": 1}
    model, copy, _ = prepare(name)
    fast = torch.compile(copy, backend="sharp", options=case | {"inner": "eager"})
    for rows in ({"frames": 8}, {"frames": 12, "text": 15}, {"frames": 4, "text": 9}, ROWS["left-padded"]):
        inputs = ARCHITECTURES[name].inputs(model, **rows)
        actual = forward(fast, inputs)
        with by_hand(name, model, case) as run:
            expected = forward(model, inputs)
        assert any(r.pruned and r.kept is not None and r.kept.equal(run.kept[0]) for r in sharp_compile.reports())
        assert_same_logits(actual.logits, expected.logits, inputs)
        assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_dynamic_said_beforehand(name, dynamic):
    case = {"selector": "sharp", "retention": 0.25, "layer": 1}
    model, copy, _ = prepare(name)
    fast = torch.compile(copy, backend="sharp", dynamic=dynamic, options=case | {"inner": "eager"})
    for frames in (8, 12):
        inputs = ARCHITECTURES[name].inputs(model, frames=frames)
        actual = forward(fast, inputs)
        with by_hand(name, model, case):
            expected = forward(model, inputs)
        assert_same_logits(actual.logits, expected.logits, inputs)
        assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)


@linked_and_not
def test_without_an_attention_mask(name):
    """`is_causal` takes the place of a mask, in the short layers too; only the hoisted one has rows of another."""
    case = {"selector": "sharp", "retention": 0.25, "layer": 1}
    model, copy, inputs = prepare(name)
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    decoders = []

    def inner(module, _):
        nodes = module.graph.nodes
        of_rows = [node.target is torch.ops.sharp_compile.masked_attention.default for node in nodes]
        attentions = [given for node in nodes if (given := as_sdpa(node)) is not None]
        masked = [each.get("attn_mask") is not None for each in attentions]
        decoders.append((sum(of_rows), sum(masked), sum(bool(each.get("is_causal")) for each in attentions)))
        return module.forward

    actual = forward(torch.compile(copy, backend="sharp", options=case | {"inner": inner}), bare)
    assert max(decoders) == (1, 0, LAYERS - 1)
    with by_hand(name, model, case) as run:
        expected = forward(model, bare)
    report = the_pruned_graph(sharp_compile.reports())
    assert_reported(report, inputs, visual_mask(model, inputs), run, layer=1, num_layers=LAYERS)
    assert_same_logits(actual.logits, expected.logits, inputs)
    assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)


@every_kind
def test_several_stages(name):
    stages = [(0, 0.5), (1, 0.25), (2, 0.1)]
    model, copy, inputs = prepare(name, **ROWS["left-padded"])
    copy.compile(backend="sharp", options={"stages": stages, "selector": "sharp", "inner": "eager"})
    actual = generate(copy, inputs)
    with by_hand(name, model, {"stages": stages, "selector": "sharp"}):
        expected = generate(model, inputs)
    the_pruned_graph(sharp_compile.reports())
    assert_same_generation(actual, expected, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl"])
def test_peers(name, dynamic, subtests):
    model, copy, _ = prepare(name)
    backend = ManyOptions(PEERS)
    fast = torch.compile(copy, backend=backend, dynamic=dynamic)
    for rows in (ROWS["left-padded"], {"batch": 2, "pad": [2, 0], "frames": 12}):
        inputs = ARCHITECTURES[name].inputs(model, **rows)
        for backend.chosen, case in enumerate(PEERS):
            with subtests.test(**case, rows=rows):
                actual = forward(fast, inputs)
                with by_hand(name, model, case) as run:
                    expected = forward(model, inputs)
                kept = [report.kept for report in backend.reports() if report.pruned and report.kept is not None]
                assert any(positions.equal(run.kept[-1]) for positions in kept)
                assert_same_logits(actual.logits, expected.logits, inputs)
                assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)


@linked_and_not
def test_hidden_states_are_short_after_the_cut(name):
    case = {"selector": "uniform", "retention": 0.25, "layer": 1}
    model, _, inputs = prepare(name)
    inputs["output_hidden_states"] = True
    with by_hand(name, model, case):
        expected = forward(model, inputs).hidden_states
    copy = deepcopy(model)  # only now, as the first call that asks for hidden states installs hooks for them
    actual = forward(torch.compile(copy, backend="sharp", options=case | {"inner": "eager"}), inputs).hidden_states
    the_pruned_graph(sharp_compile.reports())
    assert len(actual) == len(expected) == LAYERS + 1
    for index in (0, 1, 3, 4):  # 2 is at the cut, and may be long or short
        torch.testing.assert_close(actual[index], expected[index], atol=1e-4, rtol=1e-4)

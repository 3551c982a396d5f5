"""Graphs of any wiring: pruned as the program is by hand, or as they were with a reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import sharp_compile
from sharp_compile.backend import sharp
from sharp_compile.integrations import transformers
from tests.fuzz.programs import IN_ORDER, ON_TOKENS, Eagerly, Layer, Program, graph_of

CLOSE = {"atol": 2e-4, "rtol": 2e-3}
EXAMPLES = 12
LEAST_PRUNED = 1 / 4


@st.composite
def programs(draw):
    """Decoders of two to five layers; sizes are few and small, so that they often equal each other."""
    size = st.sampled_from([1, 2, 3, 4, 6, 8])
    count = draw(st.integers(2, 5))
    kv_heads, groups = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 1, 2, 3]))
    layers = []
    for number in range(count):
        pieces = st.sampled_from(ON_TOKENS) | st.sampled_from([*ON_TOKENS, *IN_ORDER])
        layers.append(
            Layer(
                attention=draw(st.sampled_from(["fused", "fused", "eager", None])),
                rotary=draw(st.sampled_from([None, "plain", "unsqueezed"])),
                view=draw(st.sampled_from(["sizes", "heads", "heads", "length", "rows"])),
                pieces=tuple(draw(st.lists(pieces, max_size=2))),
                back=draw(st.none() | st.none() | st.integers(0, number)),
                injects=draw(st.sampled_from([False] * 7 + [True])),
            )
        )
    return Program(
        rows=draw(st.integers(1, 3)),
        before=draw(st.integers(0, 4)),
        visual=draw(st.integers(1, 14)),
        after=draw(st.integers(1, 5)),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4, 8])),
        channels=draw(size.filter(lambda channels: channels > 1) | st.integers(2, 20)),
        mask=draw(st.sampled_from([None, "causal", "additive", "window", "rows"])),
        modules=draw(st.booleans()),
        symbolic=draw(st.sampled_from([False, False, True])),
        twice=draw(st.sampled_from([False, False, False, True])),
        outputs=tuple(draw(st.lists(st.sampled_from(["logits", "last", "hidden", "keys"]), min_size=1, max_size=3))),
        layers=tuple(layers),
        forgotten=tuple(draw(st.sampled_from([[]] * 5 + [[3], [11], [29]]))),
    )


OPTIONS = st.fixed_dictionaries(
    {
        "retention": st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]),
        "layer": st.integers(0, 3),
        "selector": st.sampled_from(["uniform", "uniform", "uniform", "fastv"]),
        "hoist": st.booleans(),
    }
)


CASES = st.tuples(programs(), OPTIONS)


def check(case):
    """Compiles the graph of a program and compares it with the program; whether it was pruned."""
    program, options = case
    # Else the first graph would be traced again, which Dynamo does for the backend, and nobody here.
    transformers.install()
    sharp_compile.reset()
    module, inputs = graph_of(program)
    code = module.code
    compiled = sharp(module, inputs, options={"inner": "eager", "on_skip": "silent", **options})
    assert module.code == code, "the graph is Dynamo's"
    by_name = program.inputs()
    actual = compiled(*inputs)
    (report,) = sharp_compile.reports()
    if currently_in_test_context():
        event("pruned" if report.pruned else report.reason[:60])
    if not report.pruned:
        assert report.reason
        expected = program.run(Eagerly(), by_name, program.length)
    else:
        cut = program.last_before(report.layer)
        after = [piece for layer in program.layers[cut + 1 :] for piece in layer.pieces if piece in IN_ORDER]
        assert not after, f"pruned in front of {after}"
        kept = report.kept
        place = torch.arange(program.length)
        text = place[(place < program.before) | (place >= program.before + program.visual)]
        number = -(-round(options["retention"] * 10**6) * program.visual // 10**6)
        assert kept.shape == (program.rows, len(text) + number)
        assert all(torch.isin(text, row).all() and (row.diff() > 0).all() for row in kept)
        if options["selector"] == "uniform":
            chosen = [program.before + each * program.visual // number for each in range(number)]
            assert kept.tolist() == [sorted([*text.tolist(), *chosen])] * program.rows
        expected = program.run(Eagerly(), by_name, program.length, cut, kept)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, **CLOSE)
    return report.pruned


def test_any_graph():
    pruned = []

    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    @given(CASES)
    def any_graph(case):
        pruned.append(check(case))

    any_graph()
    # Declining everything would be no error above.
    assert sum(pruned) >= LEAST_PRUNED * len(pruned), f"{sum(pruned)} of {len(pruned)}"


def test_features_that_are_put_over_others_are_not_counted_twice():
    layer = Layer("fused", "plain", "heads", ())
    program = Program(1, 3, 7, 2, 1, 1, 8, 18, None, False, False, True, ("logits",), (layer,) * 3)
    check((program, {"retention": 0.1, "layer": 0, "selector": "uniform", "hoist": True}))


def test_a_shift_that_keeps_the_length_is_not_pruned():
    layers = (Layer("fused", None, "sizes", ()), Layer("fused", None, "sizes", ("shift",)))
    program = Program(1, 0, 7, 1, 1, 1, 2, 2, None, False, False, False, ("logits",), layers)
    check((program, {"retention": 0.25, "layer": 0, "selector": "uniform", "hoist": False}))


@pytest.mark.parametrize("node", ["query", "result"])
def test_an_attention_without_an_example_value_is_not_pruned(node):
    layers = (Layer("fused", None, "sizes", ()),) * 3
    place = {"query": 2, "result": 11}[node]
    program = Program(2, 0, 12, 1, 1, 1, 2, 2, None, False, False, False, ("logits",), layers, (place,))
    check((program, {"retention": 0.1, "layer": 0, "selector": "uniform", "hoist": False}))
    (report,) = sharp_compile.reports()
    assert "example value" in report.reason

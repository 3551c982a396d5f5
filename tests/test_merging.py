"""Selectors that merge tokens: a compiled model against the eager model pruned and merged by hand."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.support import (
    assert_same_cache,
    assert_same_generation,
    assert_same_logits,
    cache_of,
    forward,
    generate,
    the_pruned_graph,
)
from tests.test_equivalence import ManyOptions

PADDED = {"batch": 2, "pad": [0, 3]}
CUT = {"retention": 0.25, "layer": 1}
STAGES = {"stages": [(0, 0.5), (2, 0.2)]}
# With visual features that are added again after layers (DeepStack), and with embeddings of each layer's own.
ODD = ("qwen3_vl", "gemma4")
NOT_BEFORE = {"qwen3_vl": 2}

pytestmark = pytest.mark.usefixtures("room_for_many_graphs")


def pairs(ctx):
    """FastV's scores, but every sixth visual token first; every third one stands for the two after it.

    What is said of other tokens is to be ignored, as is a seventh of the visual ones, which is led to the first token.
    """
    last = torch.full((1,), ctx.query.shape[2] - 1)
    rank = ctx.is_visual.cumsum(1) - 1
    position = (~ctx.is_visual).long().argsort(dim=1, stable=True)
    into = position.gather(1, (rank - rank % 3).clamp_min(0)).where(rank % 7 != 6, 0)
    scores = ctx.attention(last).mean(1)[:, 0] + 2 * (rank % 6 == 0)
    return scores, into.where(ctx.is_visual, rank * 5 - 9)


def pairs_by_hand(tokens, counts):
    scores = oracle.fastv(tokens, counts).clone()
    into = torch.arange(tokens.visual.shape[1]).repeat(len(tokens.visual), 1)
    for row, visual in enumerate(tokens.visual):
        positions = visual.nonzero().flatten()
        scores[row, positions[::6]] += 2
        for rank, position in enumerate(positions):
            if rank % 7 != 6:
                into[row, position] = positions[rank - rank % 3]
    return scores, into


def by_hand(name, model, selector, where):
    architecture = ALL_ARCHITECTURES[name]
    tokens = architecture.tokens_per_block if architecture.shows_frames else None
    return oracle.prune(model, selector=selector, tokens_per_frame=tokens, **where)


def prepare(name, **rows):
    model = shared_model(name)
    return model, deepcopy(model), ALL_ARCHITECTURES[name].inputs(model, **rows)


def check_forward(name, model, fast, inputs, selector, where):
    actual = forward(fast, inputs)
    with by_hand(name, model, selector, where) as run:
        expected = forward(model, inputs)
    with by_hand(name, model, lambda *asked: selector(*asked)[0], where):
        dropped = forward(model, inputs).logits
    report = next(r for r in sharp_compile.reports() if r.kept is not None and r.kept.equal(run.kept[-1]))
    assert report.layer == run.layers[-1]
    assert_same_logits(actual.logits, expected.logits, inputs)
    assert_same_cache(cache_of(actual), cache_of(expected), inputs, new=0)
    assert (actual.logits[:, -1] - dropped[:, -1]).abs().max() > 1e-2, "merging made no difference"


def compiled(model, selector, where, **options):
    options = where | {"selector": selector, "inner": "eager", "on_skip": "raise"} | options
    return torch.compile(model, backend="sharp", options=options)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param(name, rows, id=f"{name}-{how}", marks=[pytest.mark.slow] * is_slow)
        for name in ("llava_onevision", "internvl", "qwen2_5_vl", *ODD)
        for how, rows in (("one row", {}), ("padded", PADDED))
        for is_slow in (name != "llava_onevision" or not rows,)
    ],
)
def test_forward(name, rows, subtests):
    """One cut, and two of them."""
    model, copy, inputs = prepare(name, **rows)
    first = NOT_BEFORE.get(name, 0)
    cases = [CUT, {"stages": [(first, 0.5), (first + 1, 0.2)]}]
    backend = ManyOptions([case | {"selector": pairs} for case in cases])
    fast = torch.compile(copy, backend=backend)
    for backend.chosen, where in enumerate(cases):
        with subtests.test(**where):
            check_forward(name, model, fast, inputs, pairs_by_hand, where)


@pytest.mark.parametrize(
    "rows", [pytest.param({}, id="one row", marks=pytest.mark.slow), pytest.param(PADDED, id="padded")]
)
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("qwen2_5_vl", None),
        ("internvl", "static"),
        *(
            pytest.param(name, cache, marks=pytest.mark.slow)
            for name in ("llava_onevision", "qwen2_5_vl", "internvl", *ODD)
            for cache in (None, "static")
            if (name, cache) not in (("qwen2_5_vl", None), ("internvl", "static"))
        ),
    ],
)
def test_generate(name, cache, rows):
    model, copy, inputs = prepare(name, **rows)
    copy.compile(backend="sharp", options=CUT | {"selector": pairs, "inner": "eager", "on_skip": "raise"})
    actual = generate(copy, inputs, cache_implementation=cache)
    with by_hand(name, model, pairs_by_hand, CUT) as run:
        expected = generate(model, inputs)
    assert the_pruned_graph(sharp_compile.reports()).kept.equal(run.kept[0])
    if cache is None:
        assert_same_generation(actual, expected, inputs)
    else:
        assert actual.sequences.tolist() == expected.sequences.tolist()
        assert_close(torch.stack(actual.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_other_lengths_after_the_first(name):
    """One graph that injects and decodes, and two that are linked."""
    model, copy, _ = prepare(name)
    fast = compiled(copy, pairs, CUT)
    for rows in ({"frames": 8}, {"frames": 12, "text": 15}, {"frames": 4, "text": 9}, PADDED):
        check_forward(name, model, fast, ALL_ARCHITECTURES[name].inputs(model, **rows), pairs_by_hand, CUT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_by_inductor(name):
    model, copy, inputs = prepare(name, **PADDED)
    check_forward(name, model, compiled(copy, pairs, CUT, inner="inductor"), inputs, pairs_by_hand, CUT)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        pytest.param("internvl", CUT, id="internvl-one cut"),
        pytest.param("qwen2_5_vl", STAGES, id="qwen2_5_vl-stages", marks=pytest.mark.slow),
        pytest.param("internvl", STAGES, id="internvl-stages", marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", CUT, id="qwen2_5_vl-one cut", marks=pytest.mark.slow),
    ],
)
def test_framefusion(name, where):
    model, copy, inputs = prepare(name, **PADDED)
    if name == "internvl":  # every second picture is like the one before; Qwen's tower makes all of them alike
        pictures = inputs["pixel_values"]
        pictures[1::2] = pictures[::2] + 0.05 * pictures[1::2]
    check_forward(name, model, compiled(copy, "framefusion", where), inputs, oracle.framefusion, where)


@pytest.mark.parametrize("selector", [pairs, "framefusion"])
def test_nothing_changes_where_nothing_is_dropped(selector):
    model, copy, inputs = prepare("llava_onevision", **PADDED)
    actual = forward(compiled(copy, selector, {"retention": 1.0}), inputs)
    expected = forward(model, inputs)
    assert_same_logits(actual.logits, expected.logits, inputs)
    assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)


@pytest.mark.slow
def test_keys_that_later_layers_share_are_no_one_stream():
    """The last two layers of this Gemma 4 read keys and values of layers 3 and 5."""
    _, copy, inputs = prepare("gemma4")
    reason = "selector='pairs' merges tokens, but more than one stream of hidden states goes from decoder layer 3"
    with pytest.raises(CannotPrune, match=reason):
        forward(compiled(copy, pairs, {"retention": 0.25, "layer": 3}), inputs)

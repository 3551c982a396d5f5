"""Ways to generate that go beyond one greedy answer, compared with the hooked eager model.

Sampling, beams, eager and flex attention, rows with videos of different lengths, a second user turn on the same cache,
and a prefill that is compiled before decoding that is not. A compiled model is used for one after the other,
as users do, which also makes its graphs dynamic.
"""

from copy import deepcopy

import pytest
import torch

import sharp_compile
from tests import oracle
from tests.architectures import ARCHITECTURES, shared_model, text_only
from tests.support import (
    TOLERANCE,
    assert_same_generation,
    assert_same_logits,
    extended,
    generate,
    second_turn,
)

LAYERS = 4
CASE = {"selector": "fastv", "retention": 0.25, "layer": 1}
OPTIONS = CASE | {"inner": "eager"}
ROWS = {"one row": {}, "left-padded": {"batch": 2, "pad": [0, 3]}, "padding kept": {"text": [44, 12]}}

# The decoder of Qwen2.5-VL is Qwen2-VL's.
KINDS = {name: architecture for name, architecture in ARCHITECTURES.items() if name != "qwen2_5_vl"}
every_kind = pytest.mark.parametrize(
    "name",
    [n if n == "llava_onevision" else pytest.param(n, marks=pytest.mark.slow) for n in KINDS],
)
every_ragged_kind = pytest.mark.parametrize(
    "name",
    [n if n == "qwen2_vl" else pytest.param(n, marks=pytest.mark.slow) for n, a in KINDS.items() if a.ragged],
)


pytestmark = pytest.mark.usefixtures("room_for_many_graphs")


def prepare(name, **overrides):
    """The eager model and a compiled copy of it."""
    model = shared_model(name, layers=LAYERS, **overrides)
    fast = deepcopy(model)
    fast.compile(backend="sharp", options=OPTIONS)
    return model, fast


def assert_pruned(run):
    """The last prefill ran in a pruned graph, which kept what the oracle kept."""
    kept = [report.kept for report in sharp_compile.reports() if report.pruned and report.kept is not None]
    assert any(positions.equal(run.kept[0]) for positions in kept)


def compare(model, fast, inputs, seed=7, **options):
    """Generates with both models; tokens, logits and caches must be equal. Returns both outputs."""
    torch.manual_seed(seed)
    actual = generate(fast, inputs, **options)
    torch.manual_seed(seed)
    with oracle.prune(model, **CASE) as run:
        expected = generate(model, inputs, **options)
    assert_pruned(run)
    assert_same_generation(actual, expected, inputs)
    return actual, expected


def compare_second_turn(model, fast, inputs):
    """A text-only turn on the cache that the first turn left, with either model."""
    firsts = compare(model, fast, inputs)
    question = text_only(4, len(inputs["input_ids"]))
    turn, expected_turn = (second_turn(inputs, first, question) for first in firsts)
    actual = generate(fast, turn)
    with oracle.prune(model, **CASE):
        expected = generate(model, expected_turn)
    assert_same_generation(actual, expected, turn)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("rows", ["one row", "left-padded"])
def test_one_way_after_the_other(name, rows, subtests):
    model, fast = prepare(name)
    inputs = ARCHITECTURES[name].inputs(model, **ROWS[rows])
    with subtests.test("sampling"):
        actual, _ = compare(model, fast, inputs, do_sample=True, top_k=5, temperature=2.0)
        assert not actual.sequences.equal(generate(fast, inputs).sequences)
    with subtests.test("second turn"):
        compare_second_turn(model, fast, inputs)
    with subtests.test("beams"):
        beams = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
        actual = generate(fast, inputs, **beams)
        with oracle.prune(model, **CASE) as run:
            expected = generate(model, inputs, **beams)
        assert_pruned(run)
        assert actual.sequences.tolist() == expected.sequences.tolist()
        torch.testing.assert_close(actual.sequences_scores, expected.sequences_scores, **TOLERANCE)
    with subtests.test("another length"):
        compare(model, fast, ARCHITECTURES[name].inputs(model, **ROWS["padding kept"]))


@pytest.mark.slow
@every_kind
def test_eager_attention(name, subtests):
    """Matmul, softmax, matmul instead of one attention node, and a mask at every step, padding or not."""
    model, fast = prepare(name, attn_implementation="eager")
    for rows, arguments in ROWS.items():
        with subtests.test(rows):
            compare_second_turn(model, fast, ARCHITECTURES[name].inputs(model, **arguments))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
@pytest.mark.parametrize("rows", ROWS)
def test_flex_attention(name, rows):
    """Block masks at the kept positions, and of the last keys while decoding; the oracle has dense ones."""
    model = shared_model(name, layers=LAYERS)
    fast = ARCHITECTURES[name].build(layers=LAYERS, attn_implementation="flex_attention")
    fast.compile(backend="sharp", options=OPTIONS)
    compare_second_turn(model, fast, ARCHITECTURES[name].inputs(model, **ROWS[rows]))


@every_ragged_kind
def test_rows_with_videos_of_different_lengths(name, subtests):
    model, fast = prepare(name)
    for arguments in ({"frames": [8, 4]}, {"frames": [4, 8], "text": [12, 20]}):
        with subtests.test(**arguments):
            compare(model, fast, ARCHITECTURES[name].inputs(model, **arguments))


@pytest.mark.parametrize("name", ["internvl", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
def test_a_row_with_too_much_text_runs_unpruned_or_is_an_error(name):
    """The second row has hardly a video: what would have to be dropped is text."""
    model, fast = prepare(name)
    inputs = ARCHITECTURES[name].inputs(model, frames=[12, 2], text=[12, 50])
    with pytest.raises(ValueError, match="more text tokens"), oracle.prune(model, **CASE):
        generate(model, inputs)
    with pytest.warns(UserWarning, match="row 1 of the batch has"):
        actual = generate(fast, inputs)
    assert_same_generation(actual, generate(model, inputs), inputs)
    strict = sharp_compile.compile(deepcopy(model), **OPTIONS, on_skip="raise")
    with pytest.raises(ValueError, match="row 1 of the batch has"):
        generate(strict, inputs)


def prefill_then_generate(model, prefill, inputs):
    """`NEW` tokens: one call of `prefill`, and `generate` of `model`, not compiled, on the cache it returned."""
    with torch.no_grad():
        output = prefill(**inputs)
    first = output.logits[:, -1:].argmax(-1)
    turn = {key: extended(inputs, first)[key] for key in ("input_ids", "attention_mask")}
    return output.logits, generate(model, turn | {"past_key_values": output.past_key_values})


@pytest.mark.parametrize(
    ("name", "attention", "rows"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case != ("llava_onevision", "sdpa", "left-padded")))
        for case in [("llava_onevision", "sdpa", rows) for rows in ROWS]
        + [("qwen2_vl", "eager", rows) for rows in ROWS]
    ],
)
def test_decoding_eagerly_after_a_compiled_prefill(name, attention, rows):
    model = shared_model(name, layers=LAYERS, attn_implementation=attention)
    copy = deepcopy(model)
    inputs = ARCHITECTURES[name].inputs(model, **ROWS[rows])
    logits, actual = prefill_then_generate(copy, torch.compile(copy, backend="sharp", options=OPTIONS), inputs)
    with oracle.prune(model, **CASE) as run:
        expected_logits, expected = prefill_then_generate(model, model, inputs)
    assert_pruned(run)
    assert_same_logits(logits, expected_logits, inputs)
    assert_same_generation(actual, expected, inputs)

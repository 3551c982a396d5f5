"""Padding in front of a row, after it, between its tokens: what is kept, and what follows from it."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from tests import oracle
from tests.architectures import ARCHITECTURES, shared_model, text_only
from tests.support import (
    TOLERANCE,
    assert_same_cache,
    assert_same_logits,
    extended,
    forward,
    the_pruned_graph,
    with_padding_moved,
)
from tests.test_equivalence import LAYERS, ManyOptions, by_hand

PLACES = ("front", "behind", "between", "everywhere")
CASES = [
    *({"selector": selector, "retention": 0.25} for selector in ("uniform", "fastv", "sharp", "framefusion")),
    {"selector": "fastv", "stages": [(0, 0.6), (1, 0.3)]},
]
PEERS = [{"selector": selector, "retention": 0.3} for selector in ("feather", "sparsevlm", "visiondrop", "diversity")]
ROWS = {
    "padding": {"batch": 3, "pad": [0, 4, 9], "text": 14},
    # Row 1 has half of the visual tokens, and gives up padding after the first real token besides.
    "few frames": {"frames": [8, 4], "text": [12, 14]},
    # Row 0 has more padding than a row gives up.
    "much padding": {"text": [12, 46]},
}

pytestmark = pytest.mark.usefixtures("room_for_many_graphs")


def many(name, *cases, **options):
    """The model, and a copy that is compiled with each of these options."""
    model, backend = shared_model(name, layers=LAYERS, **options), ManyOptions(cases)
    return model, torch.compile(deepcopy(model), backend=backend), backend


def check(name, model, fast, case, backend, inputs):
    actual = forward(fast, inputs)
    report = the_pruned_graph(backend.reports())
    with by_hand(name, model, case, report) as run:
        expected = forward(model, inputs)
    assert report.kept.tolist() == run.kept[-1].tolist()
    assert_same_logits(actual.logits, expected.logits, inputs, run)
    assert_same_cache(actual.past_key_values, expected.past_key_values, inputs, run=run)
    return run.kept[-1]


@pytest.mark.parametrize(
    ("name", "rows", "cases"),
    [
        pytest.param("llava_onevision", "padding", CASES, marks=pytest.mark.slow),
        ("internvl", "few frames", CASES),
        pytest.param("qwen2_vl", "much padding", CASES, marks=pytest.mark.slow),
        *(
            pytest.param(name, rows, CASES + PEERS, marks=pytest.mark.slow)
            for name, rows in product(ARCHITECTURES, ROWS)
            if ARCHITECTURES[name].ragged or rows != "few frames"
        ),
    ],
)
def test_forward(name, rows, cases, subtests):
    model, fast, backend = many(name, *cases)
    inputs = ARCHITECTURES[name].inputs(model, **ROWS[rows])
    for where in PLACES:
        moved = with_padding_moved(inputs, where)
        for backend.chosen, case in enumerate(cases):
            with subtests.test(where=where, **case):
                kept = check(name, model, fast, case, backend, moved)
                mask = moved["attention_mask"]
                if (rows, where) == ("few frames", "behind"):
                    assert mask[1].gather(0, kept[1]).logical_not().sum() < mask[1].logical_not().sum()


@pytest.mark.parametrize("attention", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_other_masks(attention, subtests):
    """Additive masks, and masks of blocks."""
    name, cases = "internvl", CASES[1:3]
    model = shared_model(name, layers=LAYERS)
    _, fast, backend = many(name, *cases, attn_implementation=attention)
    inputs = ARCHITECTURES[name].inputs(model, **ROWS["few frames"])
    for where in PLACES:
        moved = with_padding_moved(inputs, where)
        for backend.chosen, case in enumerate(cases):
            with subtests.test(where=where, **case):
                check(name, model, fast, case, backend, moved)


@pytest.mark.parametrize("selector", ["uniform", "fastv"])
def test_padding_behind_changes_no_logits(selector):
    """Log-probabilities of completions of different lengths are those of each row alone, of the same tokens kept."""
    model, fast, _ = many("llava_onevision", {"selector": selector, "retention": 0.25})
    inputs = ARCHITECTURES["llava_onevision"].inputs(model, batch=2, pad=[0, 3])
    prompt, lengths = inputs["input_ids"].shape[1], (9, 4)
    inputs = extended(inputs, text_only(9, 2))
    for row, length in enumerate(lengths):
        inputs["input_ids"][row, prompt + length :] = 0
        inputs["attention_mask"][row, prompt + length :] = 0
    logits = forward(fast, inputs).logits
    with oracle.prune(model, selector=selector, retention=0.25) as run:
        forward(model, inputs)
    for row, (length, kept) in enumerate(zip(lengths, run.kept[0], strict=True)):
        real = inputs["attention_mask"][row].bool()
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        alone |= {name: value[:, real] for name, value in alone.items() if value.shape == (1, len(real))}
        is_real = real[kept]
        with oracle.prune(model, positions=(real.cumsum(0) - 1)[kept[is_real]][None]):
            expected = forward(model, alone).logits[0]
        completion = slice(-length - 1, -1)
        tokens = alone["input_ids"][0, -length:, None]
        ours, theirs = (each[completion].log_softmax(-1).gather(1, tokens) for each in (logits[row, is_real], expected))
        assert_close(ours, theirs, **TOLERANCE)

"""Every architecture, call and kind of cache: pruned as the oracle prunes by hand, or declined with a reason.

The whole matrix is slow. One case of a twenty-fourth of the architectures is not, by the seed of `tests.rotation`: CI
runs that.
`pytest -m "slow or not slow" tests/test_every_architecture.py --table docs/architectures.md` runs all of it, and
writes what came out. Every case that runs otherwise is compared with that page.
"""

from __future__ import annotations

import gc
import inspect
import re
import warnings
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers

import sharp_compile
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model, visual_mask
from tests.rotation import seed
from tests.support import (
    assert_same_cache,
    assert_same_generation,
    assert_same_logits,
    cache_of,
    forward,
    generate,
    layers_once,
)
from tests.table import CALLS, check_on_page

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
OPTIONS = {"inner": layers_once, "retention": 0.25}
ROWS = {"one row": {}, "padded": {"batch": 2, "pad": [0, 3]}}
# Its own sharp, the oracle knows for some of these only: there it takes the positions.
SELECTORS = ("uniform", "fastv", "sharp")

# What is declined, with a part of the reason.
NO_DECODER = "no compiled graph with a decoder read them.*; Dynamo broke the code that followed, last in"
DECLINED = {
    "ernie4_5_vl_moe": "leaves no later layer to shorten",
    "glm5_next": NO_DECODER,
    "granite4_vision": "leaves no later layer to shorten",
    "inkling2": "a softmax in a form that is not known, at cat",
    "inkling2_loop": "a softmax in a form that is not known, at cat",
    "inkling_mm_model": "can't be proven right with fewer tokens",
    "qwen4_exp": NO_DECODER,
    # Their keys are made of all slots of the cache, which a rule that reads attention can't take apart.
    ("hy_v4_vl", "static cache", "padded"): r"preallocated \(static\) one",
    ("mistral_large4", "static cache", "padded"): r"preallocated \(static\) one",
}
# These keep masks of all pairs of tokens: one that is added to the scores, attention with sinks that is written out,
# and masks of each query's best keys.
KEEPS_MASKS = ("kosmos-2", "hy_v4_vl", "mistral_large4", "dots3_note")
# Visual features are injected by code that Dynamo runs eagerly, so only `sharp_compile.compile` can tell where.
INJECT_EAGERLY = ("granite4_vision", "molmo2", "ovis2", "phi4_multimodal")
# Before transformers 5.5 nothing in a static cache says how many tokens it holds.
STATIC_IS_DECLINED = "cumulative_length" not in inspect.getsource(transformers.cache_utils.StaticLayer)
# These fail in transformers itself, without any compiler.
FAILS_IN_TRANSFORMERS = {
    (name, "static cache")
    for name in (
        *("inkling2", "inkling2_loop", "inkling_mm_model", "kosmos-2"),
        "gemma4_unified",  # other logits than with a dynamic one: pictures don't see themselves whole
    )
}


def cases():
    """All cases, those of other seeds marked slow. The selectors take turns: two meet each architecture and call."""
    for number, (name, (place, call), (row, rows)) in enumerate(
        product(ALL_ARCHITECTURES, enumerate(CALLS), enumerate(ROWS))
    ):
        if (name, call) in FAILS_IN_TRANSFORMERS:
            continue
        selector = SELECTORS[(number // 6 + place + row) % 3]
        # One of the six of each for every twenty-fourth seed, counted so that a seed has calls and rows of every kind.
        marks = [] if (number + number // 6 - seed()) % 144 == 0 else [pytest.mark.slow]
        yield pytest.param(name, call, rows, selector, marks=marks, id=f"{name}-{call}-{rows}-{selector}")


@pytest.mark.usefixtures("room_for_many_graphs")
@pytest.mark.parametrize(("name", "call", "rows", "selector"), cases())
def test_pruned_or_declined(name, call, rows, selector, record_property, pytestconfig):
    architecture, model = ALL_ARCHITECTURES[name], shared_model(name)
    inputs = architecture.inputs(model, **ROWS[rows])
    run_model = forward if call == "forward" else partial(generate, max_new_tokens=3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if call == "forward" and name not in INJECT_EAGERLY:
            fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS | {"selector": selector})
        else:
            fast = sharp_compile.compile(deepcopy(model), **OPTIONS, selector=selector)
        actual = run_model(fast, inputs, **({"cache_implementation": "static"} if call == "static cache" else {}))
        gc.collect()  # embeddings that no decoder read are told of when they are gone
    pruned = [report for report in sharp_compile.reports() if report.pruned]
    declined = r"preallocated \(static\) one" if STATIC_IS_DECLINED and call == "static cache" else None
    declined = declined or DECLINED.get((name, call, rows)) or DECLINED.get(name)
    if declined:
        assert not pruned
        expected = run_model(model, inputs)
        reasons = [str(warning.message) for warning in told if "runs a graph unpruned" in str(warning.message)]
        # Other graphs of the call may be declined as well.
        found = [reason for reason in reasons if re.search(declined, reason)]
        assert found, reasons
        outcome = (name, call, rows, "", min(found, key=len))
    else:
        (report,) = pruned
        if selector == "sharp":
            cut = {"positions": report.kept, "layer": report.layer}
        else:
            cut = {"retention": 0.25, "layer": 1, "selector": selector}
        with oracle.prune(model, **cut) as run:
            expected = run_model(model, inputs)
        assert report.kept.tolist() == run.kept[0].tolist()
        assert report.layer == run.layers[0]
        outcome = (name, call, rows, "pruned", report.reason)
        # Attention that is written out reads its mask; with a static cache `generate` hands masks over.
        written_out = model.config.get_text_config(decoder=True)._attn_implementation == "eager"
        assert call == "static cache" or (report.dense_masks > 0) == (name in KEEPS_MASKS or written_out)
    record_property("outcome", outcome)
    if call == "forward":
        assert_same_logits(actual.logits, expected.logits, inputs)
        assert_same_cache(cache_of(actual), cache_of(expected), inputs, new=0)
    elif call == "generate":
        assert_same_generation(actual, expected, inputs)
    else:
        assert actual.sequences.tolist() == expected.sequences.tolist()
        torch.testing.assert_close(torch.stack(actual.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
    if not pytestconfig.getoption("--table"):
        check_on_page(PAGE, outcome)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("molmo2", marks=pytest.mark.slow),
        pytest.param("ovis2", marks=pytest.mark.skipif(transformers.__version__ < "5", reason="no such tower")),
    ],
)
def test_features_injected_eagerly_are_no_silent_no_op(name):
    architecture, model = ALL_ARCHITECTURES[name], shared_model(name)
    inputs = architecture.inputs(model)
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS)
    with pytest.warns(UserWarning, match=r"sharp_compile\.compile\(model\) tells it"):
        actual = forward(fast, inputs)
    assert_same_logits(actual.logits, forward(model, inputs).logits, inputs)
    torch._dynamo.reset()
    sharp_compile.reset()
    with sharp_compile.visual_tokens(visual_mask(model, inputs)):
        forward(torch.compile(deepcopy(model), backend="sharp", options=OPTIONS), inputs)
    assert [report.pruned for report in sharp_compile.reports()].count(True) == 1

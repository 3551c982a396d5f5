"""With a cache, dynamic or static, `generate` gives the logits that it gives without one.

This needs no oracle: without a cache each token is a whole prefill. Some of the cases run each time, by the seed of
`tests.rotation`; the others are slow.
"""

from __future__ import annotations

import gc
from copy import deepcopy
from itertools import chain, product

import pytest
import torch

import sharp_compile
from sharp_compile import report
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.rotation import some_of
from tests.support import generate, has_window, with_padding_moved, with_window

NEW = 6
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}}
# Its scores do not depend on what follows the video: without a cache, each token is another last position.
SELECTORS = ("uniform", "visiondrop")
ROWS = {
    "one row": ({}, "front"),
    "padded": ({"batch": 2, "pad": [0, 6]}, "front"),
    "padding everywhere": ({"batch": 2, "pad": [0, 6]}, "everywhere"),
}
# The length of a sliding window less that of the prompt, None for that of the architecture, which is much shorter.
WINDOWS = {"short": None, "between prompt and answer": 3, "long": 1000}
WINDOWED = (
    *("aya_vision", "cohere_compass", "dots3_note", "exaone4_5", "gemma3", "gemma4", "inkling2", "lfm3_vl"),
    *("muse_glimmer", "muse_spark", "cohere2_vision", "inkling2_loop", "inkling_mm_model"),
)
# What the stock model can't do, or what it does otherwise with a cache than without: measured, transformers 5.23.
STOCK = {
    ("ernie4_5_vl_moe", "none"): "fails without a cache: the mask has the length of one more token than the features",
    ("inkling2", "static"): "fails with a static cache: sizes 56 and 51 do not match",
    ("ovis2", "padding everywhere"): "logits with a cache differ by 20 from those without",
}
# The window counted kept tokens in place of positions, where its length had become symbolic.
ALWAYS = ("lfm3_vl", "one row", "between prompt and answer", "uniform")
NOTHING_VISUAL = "no visual tokens are injected in this graph"


def cases():
    """All cases, of which some are not slow."""
    ids = {}
    for name in ALL_ARCHITECTURES:
        windows = WINDOWS if name in WINDOWED else ("short",)
        ids[name] = [(name, *case) for case in product(ROWS, windows, SELECTORS)]
    quick = some_of(ids, 1 / 64) | {ALWAYS}
    for case in chain.from_iterable(ids.values()):
        yield pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow], id="-".join(case))


@pytest.mark.slow
def test_which_have_windows():
    assert {name for name in ALL_ARCHITECTURES if has_window(shared_model(name))} == set(WINDOWED)


def logits_of(model, inputs, **options):
    """The logits after each token ``[new, B, vocabulary]``."""
    return torch.stack(generate(model, inputs, max_new_tokens=NEW, **options).logits)


def gap(actual, expected):
    return float((actual - expected).abs().max())


@pytest.mark.usefixtures("room_for_many_graphs")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "rows", "window", "selector"), cases())
def test_the_same_logits(name, rows, window, selector, subtests):
    arguments, where = ROWS[rows]
    shared = shared_model(name)
    if reason := STOCK.get((name, "none"), STOCK.get((name, rows))):
        pytest.skip(f"transformers: {reason}")
    inputs = with_padding_moved(ALL_ARCHITECTURES[name].inputs(shared, **arguments), where)
    more = WINDOWS[window]
    model = with_window(shared, None if more is None else inputs["input_ids"].shape[1] + more)
    stock = logits_of(model, inputs, use_cache=False)
    fast = sharp_compile.compile(deepcopy(model), inner="eager", selector=selector, retention=0.25)
    expected, pruned = pruned_or_said(fast, inputs, use_cache=False)
    if not pruned:
        assert gap(expected, stock) <= 1e-4
    for cache, options in CACHES.items():
        with subtests.test(cache=cache):
            if reason := STOCK.get((name, cache)):
                pytest.skip(f"transformers: {reason}")
            assert gap(logits_of(model, inputs, **options), stock) <= 1e-4, "the stock model's own logits"
            actual, was_pruned = pruned_or_said(fast, inputs, **options)
            assert pruned or not was_pruned, "pruned with a cache only"
            assert gap(actual, expected if was_pruned else stock) <= 1e-4


def pruned_or_said(model, inputs, **options):
    """The logits of a call, and whether it was pruned; where it was not, a report says why."""
    with report.watch() as graphs:
        logits = logits_of(model, inputs, **options)
        gc.collect()  # embeddings that no decoder read are told of when they are gone
    pruned = any(graph.pruned for graph in graphs)
    reasons = {graph.reason for graph in sharp_compile.reports() if not graph.pruned}
    assert pruned or reasons - {NOTHING_VISUAL}, "unpruned in silence"
    return logits, pruned

"""Caches that can't be shortened are declined, and the numbers stay those of the model."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

import sharp_compile
from tests.architectures import ARCHITECTURES, shared_model
from tests.support import TOLERANCE, extended, forward, generate

OPTIONS = {"inner": "eager", "retention": 0.25}


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_a_static_cache_is_declined(name):
    model = shared_model(name, layers=4)
    inputs = ARCHITECTURES[name].inputs(model)
    expected = generate(model, inputs, cache_implementation="static")
    fast = deepcopy(model)
    fast.compile(backend="sharp", options=OPTIONS)
    with pytest.warns(UserWarning, match=r"preallocated \(static\)"):
        actual = generate(fast, inputs, cache_implementation="static")
    assert actual.sequences.tolist() == expected.sequences.tolist()
    assert not any(report.pruned for report in sharp_compile.reports())


def test_a_new_video_on_a_cache_that_holds_tokens_is_declined():
    name = "llava_onevision"
    model = shared_model(name, layers=4)
    architecture = ARCHITECTURES[name]
    first, second = architecture.inputs(model, seed=1), architecture.inputs(model, frames=6, seed=2)
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS)
    cache = forward(fast, first).past_key_values
    assert cache.layers[3].keys.shape[2] < cache.layers[0].keys.shape[2]
    turn = {
        **second,
        "attention_mask": extended(first, second["input_ids"])["attention_mask"],
        "past_key_values": deepcopy(cache),
    }
    expected = forward(model, turn).logits
    with pytest.warns(UserWarning, match="holds tokens already"):
        actual = forward(fast, turn | {"past_key_values": cache}).logits
    assert_close(actual, expected, **TOLERANCE)

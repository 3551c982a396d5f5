"""Caches: shortened after the cut, whatever their kind, or declined with the model's own numbers."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close
from transformers import StaticCache

import sharp_compile
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, ARCHITECTURES, shared_model
from tests.support import TOLERANCE, extended, forward, generate, the_pruned_graph

OPTIONS = {"inner": "eager", "retention": 0.25, "selector": "fastv"}
CASE = {"retention": 0.25, "layer": 1, "selector": "fastv"}


def static_cache(model, length=64):
    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)


@pytest.mark.usefixtures("room_for_many_graphs")
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_a_static_cache_gives_what_a_dynamic_one_gives(attention, subtests):
    """For prompts of several lengths, of one row and padded: the first is compiled for its length, then for all."""
    name = "llava_onevision"
    model = shared_model(name, layers=4, attn_implementation=attention)
    fast = sharp_compile.compile(deepcopy(model), **OPTIONS)
    for arguments in ({}, {"frames": 10}, {"frames": 6, "text": 14}, {"batch": 2, "pad": [0, 3]}):
        with subtests.test(str(arguments)):
            inputs = ARCHITECTURES[name].inputs(model, **arguments)
            actual = generate(fast, inputs, cache_implementation="static")
            with oracle.prune(model, **CASE) as run:
                expected = generate(model, inputs)
            assert actual.sequences.tolist() == expected.sequences.tolist()
            assert_close(torch.stack(actual.logits), torch.stack(expected.logits), **TOLERANCE)
            length, kept = inputs["input_ids"].shape[1], run.kept[0].shape[1]
            buffers = [layer.keys.shape[2] for layer in actual.past_key_values.layers]
            assert buffers[2:] == [buffers[0] - (length - kept)] * 2


def test_a_static_cache_can_be_reset_and_used_again():
    name = "llava_onevision"
    model = shared_model(name, layers=4)
    inputs = ARCHITECTURES[name].inputs(model)
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS)
    cache = static_cache(model)
    first = forward(fast, inputs | {"past_key_values": cache}).logits
    the_pruned_graph(sharp_compile.reports())
    assert [layer.keys.shape[2] for layer in cache.layers] == [64, 64, 40, 40]
    cache.reset()
    assert_close(forward(fast, inputs | {"past_key_values": cache}).logits, first)
    assert cache.layers[3].keys.shape[2] in (40, 64)


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_a_later_stage_asks_keys_in_a_static_cache(attention):
    """Which are as long as the stage before left them, and stand in a longer buffer."""
    model = shared_model("llava_onevision", layers=4, attn_implementation=attention)
    inputs = ARCHITECTURES["llava_onevision"].inputs(model)
    stages = {"stages": [(0, 0.5), (1, 0.25)], "selector": "visiondrop"}
    fast = torch.compile(deepcopy(model), backend="sharp", options={"inner": "eager", "on_skip": "raise"} | stages)
    actual = forward(fast, inputs | {"past_key_values": static_cache(model)}).logits
    with oracle.prune(model, **stages):
        expected = forward(model, inputs).logits
    assert_close(actual, expected, **TOLERANCE)


def test_a_static_cache_that_was_made_before_is_declined():
    name = "llava_onevision"
    model = shared_model(name, layers=4)
    inputs = ARCHITECTURES[name].inputs(model)
    caches = [static_cache(model), static_cache(model)]
    for cache in caches:
        cache.early_initialization(1, 2, 16, torch.float32, torch.device("cpu"))
    expected = forward(model, inputs | {"past_key_values": caches[0]}).logits
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS)
    with pytest.warns(UserWarning, match=r"preallocated \(static\) one that was made before"):
        actual = forward(fast, inputs | {"past_key_values": caches[1]}).logits
    assert_close(actual, expected, **TOLERANCE)
    assert not any(report.pruned for report in sharp_compile.reports())


def test_a_layer_that_keeps_more_than_is_left_is_declined():
    """A static cache with a sliding window of 12, of which only 10 tokens would be left."""
    name = "exaone4_5"
    model = shared_model(name)
    inputs = ALL_ARCHITECTURES[name].inputs(model, text=8)
    expected = generate(model, inputs, cache_implementation="static")
    fast = sharp_compile.compile(deepcopy(model), **OPTIONS | {"retention": 0.1})
    with pytest.warns(UserWarning, match="keeps the last 12 in its state"):
        actual = generate(fast, inputs, cache_implementation="static")
    assert actual.sequences.tolist() == expected.sequences.tolist()


@pytest.mark.parametrize("arguments", [{}, {"batch": 2, "pad": [0, 3]}])
def test_masks_of_a_kind_whose_first_layer_is_behind_the_cut(arguments):
    """The first layer without a window is layer 2; masks are made by what its cache says."""
    name = "exaone4_5"
    model = shared_model(name)
    inputs = ALL_ARCHITECTURES[name].inputs(model, **arguments)
    fast = sharp_compile.compile(deepcopy(model), **OPTIONS)
    actual = generate(fast, inputs)
    with oracle.prune(model, **CASE):
        expected = generate(model, inputs)
    assert actual.sequences.tolist() == expected.sequences.tolist()
    assert_close(torch.stack(actual.logits), torch.stack(expected.logits), **TOLERANCE)


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

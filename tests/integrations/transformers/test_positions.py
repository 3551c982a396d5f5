"""What a cache knows of the positions that its layers hold, and keeps to."""

import functools
from copy import deepcopy

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import sharp_compile
from sharp_compile.integrations.transformers import install, positions
from tests.architectures import ALL_ARCHITECTURES, ARCHITECTURES, shared_model
from tests.support import TOLERANCE, extended, forward, the_pruned_graph, with_window

OPTIONS = {"inner": "eager", "retention": 0.25, "selector": "uniform"}


@functools.cache
def prefill(pad):
    """A model, its inputs of a row for each of `pad`, the cache that its pruned prefill filled, and what was kept."""
    model = shared_model("llava_onevision", layers=4)
    inputs = ARCHITECTURES["llava_onevision"].inputs(model, batch=len(pad), pad=list(pad))
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS)
    cache = forward(fast, inputs).past_key_values
    return model, inputs, cache, the_pruned_graph(sharp_compile.reports()).kept


def pruned_cache(*pad):
    """The same, with a cache of one's own."""
    model, inputs, cache, kept = prefill(pad or (0,))
    return model, inputs, deepcopy(cache), kept


def test_layers_behind_the_cut_know_what_was_kept():
    _, inputs, cache, kept = pruned_cache(0, 6)
    assert [positions.kept_in(layer) is None for layer in cache.layers] == [True, True, False, False]
    assert positions.kept_in(cache.layers[3]).tolist() == kept.tolist()
    assert positions.dropped_in(cache.layers[3]) == inputs["input_ids"].shape[1] - kept.shape[1]


def test_a_model_that_counts_by_a_layer_counts_what_was_seen():
    """Some layers compute positions, or a scale by them, from what the cache says of their own."""
    model, inputs, cache, kept = pruned_cache(0, 6)
    length = inputs["input_ids"].shape[1]
    assert [cache.get_seq_length(layer) for layer in range(4)] == [length] * 4
    forward(model, {"input_ids": torch.tensor([[11], [12]]), "past_key_values": cache})
    assert [cache.get_seq_length(layer) for layer in range(4)] == [length + 1] * 4
    assert cache.layers[3].keys.shape[2] == kept.shape[1] + 1


class OwnLayer(DynamicLayer):
    """A layer as models bring that keep some tokens for ever, and others in a window."""

    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(key_states, value_states, *args, **kwargs)


class SameLayer(DynamicLayer):
    """Another name."""


@pytest.mark.parametrize(("kind", "is_pruned"), [(OwnLayer, False), (SameLayer, True)])
def test_layers_that_keep_tokens_in_a_way_of_their_own_are_declined(kind, is_pruned):
    model = shared_model("llava_onevision", layers=4)
    inputs = ARCHITECTURES["llava_onevision"].inputs(model)
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS | {"on_skip": "silent"})
    cache = DynamicCache(config=model.config.text_config)
    cache.layers = [kind() for _ in cache.layers]
    output = forward(fast, inputs | {"past_key_values": cache})
    reasons = [report.reason for report in sharp_compile.reports()]
    assert any(report.pruned for report in sharp_compile.reports()) == is_pruned
    if not is_pruned:
        assert any("layers of a kind of its own (OwnLayer)" in reason for reason in reasons)
        assert_close(output.logits, forward(model, inputs).logits, **TOLERANCE)


def test_without_pruning_they_hold_all():
    model = shared_model("llava_onevision", layers=4)
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS)
    cache = forward(fast, {"input_ids": torch.arange(10, 20)[None]}).past_key_values
    assert [positions.kept_in(layer) for layer in cache.layers] == [None] * 4


def test_other_backends_leave_a_cache_as_it_is():
    install()
    model = shared_model("llava_onevision", layers=4)
    inputs = ARCHITECTURES["llava_onevision"].inputs(model)
    cache = forward(torch.compile(deepcopy(model), backend="eager"), inputs).past_key_values
    assert not positions.is_tracked(cache)
    assert not any("sharp" in name for layer in cache.layers for name in vars(layer))


@pytest.mark.parametrize("left", [1, 5, 12, 30, 40])
@pytest.mark.parametrize("pad", [(0,), (0, 6)])
def test_a_cache_that_is_cut_back_goes_on_as_if_the_rest_had_never_been(left, pad):
    """The next call sees, in each layer, the positions below `left` that the layer held."""
    model, inputs, cache, kept = pruned_cache(*pad)
    length = inputs["input_ids"].shape[1]
    keys = [layer.keys for layer in cache.layers]
    cache.crop(left - length)
    is_left = kept < left
    assert [layer.keys.shape[2] for layer in cache.layers[:2]] == [left, left]
    assert cache.layers[3].keys.shape[2] == int(is_left.sum(1).max())
    for row, held in enumerate(is_left):
        assert cache.layers[3].keys[row, :, : int(held.sum())].equal(keys[3][row][:, held])
    rows = len(kept)
    step = {
        "input_ids": torch.full((rows, 1), 11),
        "attention_mask": torch.cat([inputs["attention_mask"][:, :left], torch.ones(rows, 1, dtype=torch.int64)], 1),
        "position_ids": torch.full((rows, 1), left),
    }
    together = forward(model, step | {"past_key_values": deepcopy(cache)}).logits
    for row in range(rows):
        alone = DynamicCache()
        for layer, (whole, made) in enumerate(zip(keys, cache.layers, strict=True)):
            at = torch.arange(left) if layer < 2 else is_left[row]
            alone.update(
                whole[row : row + 1, :, at],
                made.values[row : row + 1, :, : int(at.sum()) if layer > 1 else left],
                layer,
            )
        is_real = inputs["attention_mask"][row, :left].bool()
        if not is_real.all():
            continue  # padding would have to be hidden by hand, layer by layer
        assert_close(together[row], by_hand(model, step, alone, row), **TOLERANCE)


def by_hand(model, step, cache, row):
    """The logits of one row on a cache of any lengths, whose keys are all visible."""
    one = {name: value[row : row + 1] for name, value in step.items() if name != "attention_mask"}
    return forward(model, one | {"past_key_values": cache, "attention_mask": None}).logits[0]


def test_a_crop_of_what_came_later_leaves_what_was_kept():
    model, inputs, cache, kept = pruned_cache()
    before = [layer.keys for layer in cache.layers]
    turn = extended(inputs, torch.tensor([[11, 12, 13]]))
    forward(
        model,
        {"input_ids": torch.tensor([[11, 12, 13]]), "attention_mask": turn["attention_mask"], "past_key_values": cache},
    )
    cache.crop(-3)
    assert all(layer.keys.equal(keys) for layer, keys in zip(cache.layers, before, strict=True))
    assert positions.kept_in(cache.layers[3]).equal(kept)


def test_rows_that_are_chosen_take_their_positions_with_them():
    _, _, cache, kept = pruned_cache(0, 6)
    assert not kept[0].equal(kept[1])
    cache.reorder_cache(torch.tensor([1, 0]))
    assert positions.kept_in(cache.layers[3]).equal(kept[[1, 0]])
    cache.batch_repeat_interleave(2)
    assert positions.kept_in(cache.layers[3]).equal(kept[[1, 1, 0, 0]])
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert positions.kept_in(cache.layers[3]).equal(kept[[1, 0]])
    assert positions.kept_in(deepcopy(cache).layers[3]).equal(kept[[1, 0]])


@pytest.mark.skipif(transformers.__version__ < "5", reason="reset leaves as many zeros there")
def test_a_cache_that_was_reset_holds_all_of_what_comes_next():
    model, inputs, cache, _ = pruned_cache()
    cache.reset()
    output = forward(model, inputs | {"past_key_values": cache})
    assert_close(output.logits, forward(model, inputs).logits, **TOLERANCE)
    assert len({layer.keys.shape[2] for layer in cache.layers}) == 1


def test_a_static_window_is_as_long_as_it_was():
    model = with_window(shared_model("exaone4_5"), 64)
    inputs = ALL_ARCHITECTURES["exaone4_5"].inputs(model)
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=80)
    fast = torch.compile(deepcopy(model), backend="sharp", options=OPTIONS)
    forward(fast, inputs | {"past_key_values": cache})
    report = the_pruned_graph(sharp_compile.reports())
    lost = inputs["input_ids"].shape[1] - report.pruned_length
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths == [
        64 if layer.is_sliding else 80 - lost * (number > 1) for number, layer in enumerate(cache.layers)
    ]


def test_a_cache_whose_states_can_not_be_cut_back_says_so():
    """A convolution's state holds the last kept tokens, not those before them."""
    model = shared_model("lfm3_vl")
    inputs = ALL_ARCHITECTURES["lfm3_vl"].inputs(model)
    cache = forward(sharp_compile.compile(deepcopy(model), **OPTIONS), inputs).past_key_values
    the_pruned_graph(sharp_compile.reports())
    before = [layer.keys.shape for layer in cache.layers if getattr(layer, "keys", None) is not None]
    with pytest.raises(RuntimeError, match="can't be cropped to a point before"):
        cache.crop(-4)
    assert before == [layer.keys.shape for layer in cache.layers if getattr(layer, "keys", None) is not None]

"""The mask that the attentions of a model get on a cache that a pruned model filled."""

from types import ModuleType

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from sharp_compile.integrations.transformers import masks

KEPT = torch.tensor([[0, 2, 5], [1, 3, 4]])  # of 6 positions


class Attention(torch.nn.Module):
    """One that looks up no attention function, and returns the mask that it was given."""

    layer_idx = 1

    def forward(self, hidden_states, past_key_values=None, attention_mask=None):
        past_key_values.update(hidden_states[:, None], hidden_states[:, None], self.layer_idx)
        return attention_mask


class Layer(torch.nn.Module):
    """No attention: it has a cache only to hand it on."""

    def forward(self, hidden_states, past_key_values=None, attention_mask=None):
        return attention_mask


@pytest.fixture
def own():
    """A model's module of these two."""
    module = ModuleType("modeling_own")
    for cls in (Attention, Layer):
        vars(module)[cls.__name__] = type(cls.__name__, (cls,), dict(vars(cls), __module__=module.__name__))
    assert masks.install_in(module)
    assert not masks.install_in(module), "once is enough"
    return module


def filled(kept=KEPT, seen=6, window=None):
    """A cache whose second layer holds `kept` of the positions that were `seen`."""
    cache = DynamicCache()
    for layer, held in enumerate((seen, kept.shape[1])):
        cache.update(torch.zeros(2, 1, held, 4), torch.zeros(2, 1, held, 4), layer)
    if window is not None:
        cache.layers[1] = DynamicSlidingWindowLayer(window)
        cache.layers[1].update(torch.zeros(2, 1, kept.shape[1], 4), torch.zeros(2, 1, kept.shape[1], 4))
        cache.layers[1].cumulative_length = seen
    cache.layers[1].sharp_kept, cache.layers[1].sharp_seen, cache.sharp_tracked = kept, seen, True
    return cache


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("queries", [1, 2])
def test_an_attention_gets_the_columns_of_the_positions_that_its_layer_holds(own, queries, positional):
    mask = torch.arange(6 + queries).expand(1, 1, queries, -1).float()
    hidden = torch.zeros(2, queries, 4)
    attend = own.Attention()
    given = (
        attend(hidden, filled(), mask) if positional else attend(hidden, past_key_values=filled(), attention_mask=mask)
    )
    new = list(range(6, 6 + queries))
    assert given.tolist() == [[[[0, 2, 5, *new]] * queries], [[[1, 3, 4, *new]] * queries]]


def test_they_follow_while_decoding(own):
    cache, attend = filled(), own.Attention()
    for step in range(3):
        mask = torch.arange(7 + step).expand(2, 1, 1, -1).float()
        given = attend(torch.zeros(2, 1, 4), past_key_values=cache, attention_mask=mask)
        assert given[0].flatten().tolist() == [0, 2, 5, *range(6, 7 + step)]


def test_without_a_mask_none_is_made_where_all_that_is_held_is_seen(own):
    assert own.Attention()(torch.zeros(2, 1, 4), past_key_values=filled(), attention_mask=None) is None


def test_without_a_mask_one_is_made_where_keys_have_left_the_window(own):
    """At position 6 a window of 4 begins at position 3."""
    given = own.Attention()(torch.zeros(2, 1, 4), past_key_values=filled(window=4), attention_mask=None)
    assert given.tolist() == [[[[False, False, True, True]]], [[[False, True, True, True]]]]


def test_what_is_behind_the_first_column_of_a_window_is_hidden(own):
    mask = torch.tensor([10.0, 11.0, 12.0, 13.0]).expand(1, 1, 1, -1)  # of positions 3 to 6
    given = own.Attention()(torch.zeros(2, 1, 4), past_key_values=filled(window=4), attention_mask=mask)
    low = torch.finfo(torch.float32).min
    assert given[:, 0, 0].tolist() == [[low, low, 12, 13], [low, 10, 11, 13]]


def test_rows_that_lack_a_key_hide_it(own):
    cache = filled(torch.tensor([[0, 2, 5], [1, 3, -1]]))
    cache.layers[1].sharp_ragged = True
    given = own.Attention()(torch.zeros(2, 1, 4), past_key_values=cache, attention_mask=None)
    assert given.tolist() == [[[[True, True, True, True]]], [[[True, True, False, True]]]]


def test_block_masks_too(own):
    seen = torch.tensor([True, False, True, True, True, True, True])
    mask = create_block_mask(lambda b, h, q, k: seen[k], 2, None, 1, 7, "cpu")
    given = own.Attention()(torch.zeros(2, 1, 4), past_key_values=filled(), attention_mask=mask)
    assert given.shape == (2, 1, 1, 4)
    held = [[bool(given.mask_mod(torch.tensor(b), 0, 0, torch.tensor(k))) for k in range(4)] for b in range(2)]
    assert held == [[True, True, True, True], [False, True, True, True]]


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 7), torch.zeros(2, 1, 1, 9)])
@pytest.mark.parametrize("cache", [DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())])
def test_with_any_other_cache_a_mask_is_handed_on(own, cache, mask):
    if isinstance(cache, DynamicCache):
        assert own.Attention()(torch.zeros(2, 1, 4), past_key_values=cache, attention_mask=mask) is mask
    assert own.Layer()(torch.zeros(2, 1, 4), past_key_values=cache, attention_mask=mask) is mask


def test_only_what_adds_to_a_cache_is_changed(own):
    assert own.Attention.forward.__wrapped__ is Attention.forward
    assert own.Layer.forward is Layer.forward

"""The mask that attention functions of transformers get."""

from types import ModuleType

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from sharp_compile.integrations.transformers import install, masks
from sharp_compile.integrations.transformers.masks import with_mask_cut_to_keys


def masks_seen(mask, keys):
    seen = []
    attend = with_mask_cut_to_keys(lambda module, query, key, value, attention_mask: seen.append(attention_mask))
    attend(None, torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, keys, 4), None, mask)
    return seen[0]


def test_a_wider_mask_is_cut_to_its_last_columns():
    mask = torch.arange(6).view(1, 1, 1, 6)
    assert masks_seen(mask, 4).flatten().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, 1, 4), torch.zeros(1, 4), torch.zeros(1, 1, 1, 1)])
def test_other_masks_are_handed_on(mask):
    assert masks_seen(mask, 4) is mask


def test_installed_once():
    install()
    before = type(ALL_ATTENTION_FUNCTIONS).get_interface
    install()
    assert type(ALL_ATTENTION_FUNCTIONS).get_interface is before


def check_that_a_wider_mask_is_cut(attend):
    module = torch.nn.Module()
    query, key = torch.randn(2, 2, 1, 4), torch.randn(2, 2, 5, 4)
    mask = torch.rand(2, 1, 1, 9) > 0.3
    mask[..., -1] = True
    actual, _ = attend(module, query, key, key, mask)
    expected, _ = attend(module, query, key, key, mask[..., -5:])
    assert_close(actual, expected)


def test_sdpa_takes_a_wider_mask():
    install()
    check_that_a_wider_mask_is_cut(ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None))


def test_in_versions_without_the_lookup(monkeypatch):
    """There, functions are got by their name alone, and the eager one is the module's own."""
    monkeypatch.setattr(AttentionInterface, "__getitem__", AttentionInterface.__getitem__)
    monkeypatch.delattr(AttentionInterface, "get_interface")
    masks.install()
    check_that_a_wider_mask_is_cut(ALL_ATTENTION_FUNCTIONS["sdpa"])
    module = ModuleType("modeling")
    module.eager_attention_forward = lambda module, query, key, value, mask: mask
    for _ in range(2):  # a module is seen with each class that it defines
        masks.install_in(module)
    mask = torch.arange(6).view(1, 1, 1, 6)
    key = torch.zeros(1, 2, 4, 4)
    assert module.eager_attention_forward(None, None, key, key, mask).flatten().tolist() == [2, 3, 4, 5]
    assert not hasattr(module.eager_attention_forward.__wrapped__, "__wrapped__")


def test_with_the_lookup_a_module_keeps_its_own():
    module = ModuleType("modeling")
    module.eager_attention_forward = eager = lambda: None
    masks.install_in(module)
    assert module.eager_attention_forward is eager


class Attention(torch.nn.Module):
    """One that cuts wide masks to their first columns, as some models do."""

    layer_idx = 1

    def forward(self, hidden_states, past_key_values=None, attention_mask=None):
        keys, _ = past_key_values.update(hidden_states[:, None], hidden_states[:, None], self.layer_idx)
        return attention_mask[:, :, :, : keys.shape[-2]]


class Layer(torch.nn.Module):
    """No attention: it has a cache only to hand it on."""

    def forward(self, hidden_states, past_key_values=None, attention_mask=None):
        return attention_mask


@pytest.fixture
def own():
    """A model's module whose attention looks up no function."""
    module = ModuleType("modeling_own")
    for cls in (Attention, Layer):
        vars(module)[cls.__name__] = type(cls.__name__, (cls,), dict(vars(cls), __module__=module.__name__))
    for _ in range(2):
        masks.install_in(module)
    return module


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize(("queries", "expected"), [(1, [4, 5, 6, 7]), (2, [3, 4, 5, 6, 7])])
def test_an_attention_of_its_own_gets_the_last_columns(own, queries, expected, positional):
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 6, 4), 0)
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 1)
    mask = torch.arange(8).expand(1, 1, queries, 8)
    hidden = torch.zeros(1, queries, 4)
    attention = own.Attention()
    seen = (
        attention(hidden, cache, mask) if positional else attention(hidden, past_key_values=cache, attention_mask=mask)
    )
    assert seen.tolist() == [[[expected] * queries]]


def test_a_mask_that_all_queries_share_is_as_wide_as_their_keys(own):
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 6, 4), layer)
    mask = torch.arange(9).expand(1, 1, 1, 9)
    assert own.Attention()(torch.zeros(1, 3, 4), cache, mask).tolist() == mask.tolist()


def test_an_attention_of_its_own_on_a_static_cache(own):
    cache = StaticCache(AutoConfig.for_model("llama", num_hidden_layers=2), max_cache_len=5)
    cache.update(torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4), 0)
    cache.update(torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4), 1)
    cache.layers[1].keys = cache.layers[1].keys[:, :, :3]
    keys = masks._keys_after(cache, 1, 1)
    assert keys == 3


OF_BOTH = EncoderDecoderCache(DynamicCache(), DynamicCache())


@pytest.mark.parametrize("cache", [None, DynamicCache(), OF_BOTH, ("keys", "values")])
def test_an_attention_of_its_own_without_keys_is_left_alone(cache):
    assert masks._keys_after(cache, 1, 4) is None


def test_only_what_adds_to_a_cache_is_changed(own):
    assert own.Attention.forward.__wrapped__ is Attention.forward, "changed once"
    assert own.Layer.forward is Layer.forward

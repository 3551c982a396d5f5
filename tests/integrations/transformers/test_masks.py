"""The mask that attention functions of transformers get."""

from types import ModuleType

import pytest
import torch
from torch.testing import assert_close
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
        masks.let_own_attention_cut(module)
    mask = torch.arange(6).view(1, 1, 1, 6)
    key = torch.zeros(1, 2, 4, 4)
    assert module.eager_attention_forward(None, None, key, key, mask).flatten().tolist() == [2, 3, 4, 5]
    assert not hasattr(module.eager_attention_forward.__wrapped__, "__wrapped__")


def test_with_the_lookup_a_module_keeps_its_own():
    module = ModuleType("modeling")
    module.eager_attention_forward = eager = lambda: None
    masks.let_own_attention_cut(module)
    assert module.eager_attention_forward is eager

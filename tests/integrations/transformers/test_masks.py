"""The mask that attention functions of transformers get."""

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sharp_compile.integrations.transformers import install
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


def test_sdpa_takes_a_wider_mask():
    install()
    attend = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
    module = torch.nn.Module()
    query, key = torch.randn(2, 2, 1, 4), torch.randn(2, 2, 5, 4)
    mask = torch.rand(2, 1, 1, 9) > 0.3
    mask[..., -1] = True
    actual, _ = attend(module, query, key, key, mask)
    expected, _ = attend(module, query, key, key, mask[..., -5:])
    assert_close(actual, expected)

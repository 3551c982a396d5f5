"""VisionDrop: visual tokens rate each other, text is not asked."""

import pytest
import torch
from torch.testing import assert_close

from tests import oracle
from tests.selectors.states import MASKS, SINKS, both
from tests.selectors.test_selectors import context, rule


def test_what_only_the_text_looks_at_is_not_chosen():
    """Visual tokens 2 to 7: the visual ones attend to token 3, the text after them to token 4, and more."""
    query, key = torch.zeros(1, 1, 12, 2), torch.zeros(1, 1, 12, 2)
    query[..., 2:8, 0], query[..., 8:, 1] = 4.0, 20.0
    key[..., 3, 0] = key[..., 4, 1] = 1.0
    ctx = context(query=query, grouped_key=key, grouped_key_unrotated=key)
    assert rule(selector="fastv")(ctx)[0, 2:8].argmax() == 4 - 2
    assert rule(selector="visiondrop")(ctx)[0, 2:8].argmax() == 3 - 2


def test_two_visual_tokens_by_hand():
    """Each attends evenly to all that it sees: 1 of 2 positions, and 2 of 3, the text before them among these."""
    zeros = torch.zeros(1, 1, 4, 2)
    ctx = context(query=zeros, grouped_key=zeros, grouped_key_unrotated=zeros, length=4, visual=slice(1, 3))
    assert_close(rule(selector="visiondrop")(ctx)[0, 1:3], torch.tensor([(1 / 2 + 1 / 3) / 2, 1 / 3 / 2]))


@pytest.mark.parametrize("sinks", SINKS)
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_the_definition(mask, sinks):
    ctx, tokens = both(mask, sinks=sinks)
    expected = oracle.visiondrop(tokens, ctx.budget.tolist())
    assert_close(rule(selector="visiondrop")(ctx)[ctx.is_visual], expected[ctx.is_visual])

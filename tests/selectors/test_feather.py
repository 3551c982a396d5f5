"""FEATHER: attention without rotary embedding, after a sample of all places."""

import pytest
import torch
from torch.testing import assert_close

from tests import oracle
from tests.selectors.states import MASKS, both, turned
from tests.selectors.test_selectors import context, rule


def biased(length=44, angle=0.03):
    """40 visual tokens of which number 4 answers the last position best; the rotation favours what is near.

    One pair of numbers turns: the product of two equal vectors is the cosine of the angle between their positions.
    """
    key = torch.zeros(1, 1, length, 2)
    key[..., 0] = 4.0
    key[:, :, 6, 0] = 4.5
    angles = torch.arange(length) * angle
    rotation = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).view(length, 2, 2)

    def rotate(states):
        return (rotation @ states[..., None])[..., 0]

    query = torch.full((1, 1, length, 2), 0.0)
    query[..., 0] = 4.0
    return {
        "query": rotate(query),
        "grouped_key": rotate(key),
        "grouped_key_unrotated": key,
        "rotate": rotate,
        "length": length,
        "visual": slice(2, 42),
    }


def test_early_tokens_are_not_lost_to_the_rotation():
    ctx = context(**biased(), kept=4 + 1)
    assert rule(selector="fastv")(ctx)[0, 2:42].argmax() == 39
    assert rule(selector="feather")(ctx)[0, 2:42].argmax() == 4


def test_without_the_rotation_equal_tokens_score_the_same():
    scores = rule(selector="feather")(context(**biased(), kept=4 + 1))[0, 2:42]
    others = torch.cat([scores[:4], scores[5:]])
    assert_close(others, others[:1].expand(39))


@pytest.mark.parametrize("kept, sample", [(1, 0), (3, 0), (4, 1), (10, 3), (40, 12)])
def test_three_tenths_are_spread_over_all_places(kept, sample):
    scores = rule(selector="feather")(context(**biased(), kept=4 + kept))[0, 2:42]
    places = [j * 40 // sample for j in range(sample)]
    assert (scores >= 2).nonzero().flatten().tolist() == places
    if 4 not in places:
        others = scores.where(scores < 2, 0)
        assert others.argmax() == 4


@pytest.mark.parametrize("mask", MASKS)
def test_it_is_the_definition(mask):
    ctx, tokens = both(mask)
    expected = oracle.feather(tokens, ctx.budget.tolist())
    assert_close(rule(selector="feather")(ctx)[ctx.is_visual], expected[ctx.is_visual])


def test_what_the_last_position_does_not_see_gets_nothing():
    """As in a sliding window."""
    seen = torch.arange(12) >= 5
    ctx = context(mask=seen[None, None, None], kept=7, rotate=turned)
    scores = rule(selector="feather")(ctx)[0]
    assert scores[2:5].eq(0).all()
    assert_close(scores[2:8].sum(), torch.tensor(1.0))

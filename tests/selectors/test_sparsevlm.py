"""SparseVLM: only text that is about the picture rates it."""

import pytest
import torch
from torch.testing import assert_close

from tests import oracle
from tests.selectors.states import MASKS, SINKS, both
from tests.selectors.test_selectors import context, rule


def asked(about, **changes):
    """Visual tokens 2 to 7, then four rows of text, of which those in `about` have hidden states like the video's.

    These rows attend to token 3; the others attend to token 6, and more.
    """
    video, other = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 1, 0, 0])
    hidden = other.repeat(1, 12, 1)
    query, key = torch.zeros(1, 1, 12, 4), torch.zeros(1, 1, 12, 4)
    hidden[:, 2:8] = video
    key[..., 3, 0] = key[..., 6, 1] = 1.0
    for row in range(8, 12):
        hidden[:, row] = video if row in about else other
        query[..., row, :] = torch.tensor([4.0, 0, 0, 0] if row in about else [0, 20.0, 0, 0])
    return context(query=query, grouped_key=key, grouped_key_unrotated=key, hidden=hidden, **changes)


def test_irrelevant_rows_that_dominate_the_mean_are_ignored():
    ctx = asked(about={9})
    sharp = rule(selector="sharp", segment=None, debias=None, dedup=None)(ctx)
    assert sharp[0, 2:8].argmax() == 6 - 2
    assert rule(selector="sparsevlm")(ctx)[0, 2:8].argmax() == 3 - 2


def test_the_score_is_the_mean_attention_of_the_raters():
    ctx = asked(about={8, 10})
    expected = ctx.attention(torch.tensor([8, 10])).mean((1, 2))
    assert_close(rule(selector="sparsevlm")(ctx), expected)


def test_all_text_rates_where_none_is_nearer():
    ctx = asked(about=set())
    assert_close(rule(selector="sparsevlm")(ctx), ctx.attention(torch.arange(8, 12)).mean((1, 2)))


def test_padding_does_not_rate():
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[:, 8:10] = True
    ctx = asked(about={9, 11}, is_padding=padding)
    assert_close(rule(selector="sparsevlm")(ctx), ctx.attention(torch.tensor([11]))[:, :, 0].mean(1))


@pytest.mark.parametrize("sinks", SINKS)
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_the_definition(mask, sinks):
    ctx, tokens = both(mask, sinks=sinks)
    expected = oracle.sparsevlm(tokens, ctx.budget.tolist())
    assert_close(rule(selector="sparsevlm")(ctx)[ctx.is_visual], expected[ctx.is_visual])

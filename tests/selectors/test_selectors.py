"""Each rule on states made for it."""

import pytest
import torch
from sharp_compile.kernels.keep import keep_counts, keep_positions, leading
from torch.testing import assert_close

from sharp_compile.options import Config
from sharp_compile.selector_registry import find_rule
from sharp_compile.selectors import Context
from sharp_compile.selectors.context import among


def context(length=12, visual=slice(2, 8), kept=9, heads=2, head_dim=4, rotate=None, **changes):
    """A state with visual tokens at `visual`, random where nothing else is said.

    All visual tokens are kept before any padding is, as at a retention of 1.
    """
    generator = torch.Generator().manual_seed(0)
    is_visual = torch.zeros(1, length, dtype=torch.bool)
    is_visual[:, visual] = True
    shape = (1, heads, length, head_dim)
    key = torch.randn(shape, generator=generator)
    state = {
        "query": torch.randn(shape, generator=generator),
        "grouped_key": key,
        "grouped_key_unrotated": key,
        "hidden": torch.randn(1, length, 8, generator=generator),
        "is_visual": is_visual,
        "is_padding": torch.zeros_like(is_visual),
        "frame": torch.where(is_visual, 0, -1),
        "scale": None,
        "mask": None,
        "kept": kept,
        "layer": 0,
        "rotate": rotate or (lambda keys: keys),
    }
    state |= changes
    query = state.pop("query")
    counts = counts_of(state["is_visual"], state["is_padding"], kept)
    return Context(queries=among(query), heads=query.shape[1], budget=counts.visual, **state)


def counts_of(is_visual, is_padding, kept):
    """What is kept where as many visual tokens are as there is room for."""
    return keep_counts(is_visual, is_padding, leading(is_padding), is_visual.sum(1), kept)


def kept_positions(ctx, scores):
    """The positions that a row of `ctx` keeps by these scores."""
    kinds = ctx.is_visual, ctx.is_padding
    return keep_positions(scores, *kinds, leading(ctx.is_padding), counts_of(*kinds, ctx.kept), ctx.kept)


def rule(**options):
    made = find_rule(Config.parse(options))
    return lambda ctx: made.score(ctx, *made.constants)


@pytest.mark.parametrize("visual, kept", [(6, 3), (6, 6), (7, 2), (50, 13), (33, 1)])
def test_uniform_is_the_formula(visual, kept):
    ctx = context(length=visual + 4, visual=slice(2, 2 + visual), kept=kept + 4)
    chosen = rule(selector="uniform")(ctx)[0].nonzero().squeeze(1) - 2
    assert chosen.tolist() == [j * visual // kept for j in range(kept)]


def test_uniform_of_ragged_rows():
    is_visual = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    ctx = context(is_visual=is_visual, is_padding=torch.zeros_like(is_visual), kept=5)
    assert ctx.budget.tolist() == [3, 1]
    assert rule(selector="uniform")(ctx).tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]]


def test_fastv_is_the_last_row():
    ctx = context()
    scores = (ctx.query[:, :, -1:] @ ctx.key.transpose(-1, -2) / 2).softmax(-1).mean(1)[:, 0]
    assert_close(rule(selector="fastv")(ctx), scores)


def attention_of(ctx, weights):
    """``[B, S]``: attention by the mean query of the positions that `weights` has weights of."""
    query = sum(weight * ctx.query[:, :, row] for row, weight in weights.items())
    return (query[:, :, None] @ ctx.key.transpose(-1, -2) / 2).softmax(-1).mean((1, 2))


def test_sharp_reads_every_text_row_behind_the_video():
    ctx = context()
    expected = attention_of(ctx, {8: 0.2, 9: 0.2, 10: 0.2, 11: 0.4})
    assert_close(rule(selector="sharp", segment=None, debias=None, dedup=None)(ctx), expected)


@pytest.mark.parametrize("padding, weights", [((8, 9), {10: 0.6, 11: 0.4}), ((8, 9, 10), {11: 1.0})])
def test_sharp_ignores_text_rows_that_are_padding(padding, weights):
    ctx = context(is_padding=torch.isin(torch.arange(12), torch.tensor(padding))[None])
    scores = rule(selector="sharp", segment=None, debias=None, dedup=None)(ctx)
    assert_close(scores, attention_of(ctx, weights))


def test_random_is_uniform():
    ctx = context(length=4000, visual=slice(0, 4000), kept=10)
    scores = rule(selector="random", seed=7)(ctx)[0]
    assert scores.min() >= 0 and scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.03
    counts = torch.histc(scores, bins=10, min=0, max=1)
    assert counts.min() > 300 and counts.max() < 500
    neighbours = torch.corrcoef(torch.stack([scores[:-1], scores[1:]]))[0, 1]
    assert abs(neighbours) < 0.06


def test_random_seeds_are_unrelated():
    ctx = context(length=2000, visual=slice(0, 2000), kept=10)
    first, second = (rule(selector="random", seed=seed)(ctx)[0] for seed in (0, 1))
    for shift in range(-3, 4):
        assert abs(torch.corrcoef(torch.stack([first, second.roll(shift)]))[0, 1]) < 0.08


def test_diversity_takes_the_odd_one_first():
    hidden = torch.ones(1, 12, 8)
    hidden[0, 5] = torch.tensor([1.0, -1] * 4)
    scores = rule(selector="diversity")(context(hidden=hidden))
    assert scores[0].argmax() == 5


def test_keys_for_each_query_head():
    key = torch.randn(1, 1, 12, 4)
    ctx = context(grouped_key=key, grouped_key_unrotated=key)
    assert ctx.key.shape == ctx.key_unrotated.shape == ctx.query.shape
    assert ctx.key[:, 0].equal(ctx.key[:, 1])

"""Padding anywhere in a row, whatever a layer computed for it, changes no score."""

import pytest
import torch
from torch.testing import assert_close

from tests.selectors.test_selectors import context, kept_positions, rule

LENGTH, HEADS, KV_HEADS, WIDTH = 20, 4, 2, 4
VISUAL = slice(3, 13)
FRAME = torch.tensor([-1] * 3 + [0] * 5 + [1] * 5 + [-1] * 7)
# Where padding is, counted in the padded rows: in front, after, and between tokens of text.
PADDING = {"front": [0, 1, 2], "behind": [20, 21, 22], "between": [1, 15, 18], "all": [0, 19, 22]}
SELECTORS = (
    "uniform",
    "fastv",
    "pyramiddrop",
    "feather",
    "sparsevlm",
    "visiondrop",
    "diversity",
    "framefusion",
    "sharp",
)


def turned(states, positions):
    """A rotation by an angle that grows with the position."""
    angle = positions[:, None] * torch.tensor([1.0, 0.1])
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def states(positions, padding, additive):
    """A context of the same real tokens, at these positions; all that layers compute for padding is NaN."""
    generator = torch.Generator().manual_seed(0)
    length = LENGTH + len(padding)
    real = torch.tensor([at for at in range(length) if at not in padding])
    angles = torch.zeros(length)
    angles[real] = positions

    def spread(value, axis, fill):
        result = torch.full([length if at == axis else size for at, size in enumerate(value.shape)], fill)
        return result.to(value.dtype).index_copy(axis, real, value)

    query, key = (torch.randn(1, heads, LENGTH, WIDTH, generator=generator) for heads in (HEADS, KV_HEADS))
    hidden = torch.randn(1, LENGTH, 8, generator=generator)
    hidden[:, 10:13] = hidden[:, 5:8]  # copies
    visual = torch.zeros(1, LENGTH, dtype=torch.bool)
    visual[:, VISUAL] = True
    is_padding = spread(torch.zeros_like(visual), 1, True)
    mask = torch.ones(length, length, dtype=torch.bool).tril() & ~is_padding[:, None, None, :]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    ctx = context(
        query=spread(turned(query, positions), 2, torch.nan),
        grouped_key=spread(turned(key, positions), 2, torch.nan),
        grouped_key_unrotated=spread(key, 2, torch.nan),
        hidden=spread(hidden, 1, torch.nan),
        is_visual=spread(visual, 1, False),
        is_padding=is_padding,
        frame=spread(FRAME[None], 1, -1),
        mask=mask,
        rotate=lambda keys: turned(keys, angles),
        kept=length - 6,
    )
    return ctx, real


@pytest.mark.parametrize("additive", [False, True], ids=["boolean", "additive"])
@pytest.mark.parametrize("place", PADDING)
@pytest.mark.parametrize("selector", SELECTORS)
def test_scores_are_those_without_padding(selector, place, additive):
    positions = torch.arange(LENGTH).float()
    alone, _ = states(positions, [], additive)
    padded, real = states(positions, PADDING[place], additive)
    # As many visual tokens are to be kept in both.
    padded = type(padded)(**(vars(padded) | {"budget": alone.budget}))
    expected, actual = rule(selector=selector)(alone), rule(selector=selector)(padded)
    if isinstance(expected, tuple):
        (expected, into), (actual, into_of_padded) = expected, actual
        assert into_of_padded[:, real][:, VISUAL].equal(real[into[:, VISUAL]])
    assert_close(actual[:, real][:, VISUAL], expected[:, VISUAL])
    assert kept_positions(padded, actual).shape == (1, padded.kept)


def test_the_last_position_is_that_of_the_last_real_token():
    positions = torch.arange(LENGTH).float()
    last = {place: states(positions, padding, False)[0].last.tolist() for place, padding in PADDING.items()}
    assert last == {"front": [[22]], "behind": [[19]], "between": [[22]], "all": [[21]]}

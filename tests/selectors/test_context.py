"""What a rule may look at, where it is computed from what the graph holds."""

import pytest
import torch
from torch.testing import assert_close

from tests.selectors.test_selectors import context

ROWS, LENGTH, WIDTH = 2, 9, 8
POSITIONS = torch.stack([torch.arange(LENGTH), (torch.arange(LENGTH) - 3).clamp_min(0)]).float()  # [B, S]
FREQUENCIES = torch.tensor([1.0, 0.3, 0.1, 0.03])
ANGLES = POSITIONS[..., None] * FREQUENCIES  # [B, S, D / 2]
# Multi-axis (M-RoPE): a number of each pair turns with the time, the height or the width of a token.
AXES = torch.stack([POSITIONS, POSITIONS % 3, POSITIONS % 2])[torch.tensor([0, 0, 1, 2])].movedim(0, -1) * FREQUENCIES
HALVES = (slice(0, 4), slice(4, 8))
NEIGHBOURS = (slice(0, 8, 2), slice(1, 8, 2))


def turned(states, angles=ANGLES, pairs=HALVES, scale=1.0):
    """`states` [B, H, S, D], in which the numbers of each pair are turned by an angle."""
    first, second = (states[..., pair] for pair in pairs)
    cos, sin = angles.cos()[:, None] * scale, angles.sin()[:, None] * scale
    result = states.clone()
    result[..., pairs[0]] = first * cos - second * sin
    result[..., pairs[1]] = second * cos + first * sin
    return result


def partly(states):
    """Half of the numbers are turned."""
    return torch.cat([turned(states[..., :4], ANGLES[..., :2], (slice(0, 2), slice(2, 4))), states[..., 4:]], dim=-1)


def grown(states, sign):
    """xPos (arXiv 2212.10554): queries grow with the position as keys shrink."""
    return turned(states) * torch.exp(sign * 0.1 * POSITIONS)[:, None, :, None]


# The rotation of keys, and that of queries.
FORMS = {
    "halves": (turned, turned),
    "neighbours": (lambda states: turned(states, pairs=NEIGHBOURS),) * 2,
    "several axes": (lambda states: turned(states, AXES),) * 2,
    "half of the width": (partly, partly),
    "growing": (lambda states: grown(states, -1), lambda states: grown(states, 1)),
    "repeats key heads": (lambda states: turned(states).repeat_interleave(2, dim=1), turned),
    "none": (lambda states: states, lambda states: states),
}


def state(of_key, of_query, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, 4, LENGTH, WIDTH, generator=generator)
    key = torch.randn(ROWS, kv_heads, LENGTH, WIDTH, generator=generator)
    is_visual = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    ctx = context(
        query=of_query(query),
        grouped_key=of_key(key),
        grouped_key_unrotated=key,
        is_visual=is_visual,
        is_padding=is_visual,
        rotate=of_key,
    )
    return query, ctx


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_queries_before_any_rotation(form, kv_heads):
    query, ctx = state(*FORMS[form], kv_heads)
    assert_close(ctx.query_unrotated, query)


def test_a_scale_of_the_rotation_is_that_of_the_layer():
    """Products of what is not rotated are those of the layer at distance 0, where the angles are the same."""
    scaled = (lambda states: turned(states, scale=1.3),) * 2
    query, ctx = state(*scaled)
    assert_close(ctx.query_unrotated, query * 1.3**2)
    own = (ctx.query * ctx.key).sum(-1)
    assert_close((ctx.query_unrotated * ctx.key_unrotated).sum(-1), own)


def test_gradients_are_off_around_a_rule():
    query, ctx = state(*FORMS["halves"])
    with torch.no_grad():
        assert_close(ctx.query_unrotated, query)

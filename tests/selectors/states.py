"""States of a layer that a rule and its second definition in `tests.oracle` can both look at."""

import torch

from tests import oracle
from tests.selectors.test_selectors import context

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 16, 4, 2, 4
FREQUENCIES = torch.tensor([1.0, 0.1])
# Two tokens of padding before the second row, and one visual token less in it.
VISUAL = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
VISUAL[0, 3:12] = True
VISUAL[1, 4:12] = True
PADDING = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
PADDING[1, :2] = True
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
MASKS = {
    "causal": None,
    "boolean": CAUSAL & ~PADDING[:, None, None, :],
    "additive": torch.zeros(ROWS, 1, LENGTH, LENGTH).masked_fill(
        ~(CAUSAL & ~PADDING[:, None, None, :]), torch.finfo(torch.float32).min
    ),
}

SINKS = {"no sinks": None, "sinks": torch.tensor([-1.0, 0.0, 2.0, 3.0])[None, :, None, None]}


def turned(states):
    """A rotation by an angle that grows with the position, of any number of tokens."""
    angle = torch.arange(states.shape[2])[:, None] * FREQUENCIES
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def both(mask, kept=11, sinks="no sinks"):
    """A `Context` of random states, and the same as the `Tokens` of the oracle, which keep `kept` tokens of a row."""
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(ROWS, heads, LENGTH, WIDTH, generator=generator) for heads in (HEADS, KV_HEADS))
    hidden = torch.randn(ROWS, LENGTH, 8, generator=generator)
    padding = torch.zeros_like(PADDING) if mask == "causal" else PADDING
    ctx = context(
        query=turned(query),
        grouped_key=turned(key),
        grouped_key_unrotated=key,
        hidden=hidden,
        is_visual=VISUAL,
        is_padding=padding,
        frame=torch.where(VISUAL, 0, -1),
        mask=MASKS[mask],
        rotate=turned,
        kept=kept,
        sinks=SINKS[sinks],
    )
    state = oracle.State(
        query=turned(query),
        key=turned(key).repeat_interleave(HEADS // KV_HEADS, dim=1),
        scaling=WIDTH**-0.5,
        mask=MASKS[mask],
        hidden=hidden,
        bias=None,
        softcap=None,
        sinks=SINKS[sinks],
        projected=key.transpose(1, 2).flatten(2),
        projected_query=query.transpose(1, 2).flatten(2),
        rotation=turned,
    )
    least = VISUAL.sum(1).tolist()
    return ctx, oracle.Tokens(VISUAL, padding, padding, least, lambda: state, ctx.frame, ctx.layer)

"""Every so-many-th visual token."""

import torch
from torch import Tensor

from ..selector_registry import register_selector
from .context import Context


@register_selector("uniform", needs_attention=False, merges=False)
def uniform(ctx: Context) -> Tensor:
    """Of the n visual tokens that a row of V keeps, number ``floor(j * V / n)`` for j = 0..n-1.

    Returns:
        ``[B, S]`` float32: 1 for those tokens, 0 for the others.
    """
    return spread(ctx.is_visual, ctx.budget).to(torch.float32)


def spread(is_visual: Tensor, count: Tensor) -> Tensor:
    """Return which visual tokens are number ``floor(j * V / count)`` of the V in their row, for j = 0..count-1.

    Args:
        is_visual: ``[B, S]`` bool.
        count: ``[B]`` int64, at most V.

    Returns:
        ``[B, S]`` bool.
    """
    number = is_visual.cumsum(1) - 1
    visual, count = is_visual.sum(1, keepdim=True), count[:, None]
    divisor = count.clamp_min(1)
    # The only j that can give this number is the first with j * V >= number * count.
    j = (number * divisor + visual - 1) // visual.clamp_min(1)
    return is_visual & (j < count) & (j * visual // divisor == number)

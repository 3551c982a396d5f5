"""Every so-many-th visual token."""

import torch
from torch import Tensor

from .context import Context


def uniform(ctx: Context) -> Tensor:
    """Of the n visual tokens that a row of V keeps, number ``floor(j * V / n)`` for j = 0..n-1.

    Returns:
        ``[B, S]`` float32: 1 for those tokens, 0 for the others.
    """
    number = ctx.is_visual.cumsum(1) - 1
    visual = ctx.is_visual.sum(1, keepdim=True)
    kept = ctx.budget[:, None].clamp_min(1)
    # The only j that can give this number is the first with j * V >= number * n.
    j = (number * kept + visual - 1) // visual.clamp_min(1)
    return (ctx.is_visual & (j < kept) & (j * visual // kept == number)).to(torch.float32)

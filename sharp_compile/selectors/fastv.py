"""FastV (arXiv 2403.06764)."""

import torch
from torch import Tensor

from .context import Context


def fastv(ctx: Context) -> Tensor:
    """The attention probability from the last position to each token, mean over heads.

    Returns:
        ``[B, S]`` float32.
    """
    last = torch.full((1,), ctx.query.shape[2] - 1, device=ctx.query.device)
    return ctx.attention(last).mean(1)[:, 0]

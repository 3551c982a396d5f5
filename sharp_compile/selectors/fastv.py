"""FastV (arXiv 2403.06764)."""

from torch import Tensor

from ..selector_registry import register_selector
from .context import Context


@register_selector("fastv", merges=False)
def fastv(ctx: Context) -> Tensor:
    """Return the attention probability from the last real position to each token, mean over heads.

    Returns:
        ``[B, S]`` float32.
    """
    return ctx.attention(ctx.last).mean(1)[:, 0]

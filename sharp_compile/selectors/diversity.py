"""DivPrune (arXiv 2503.02175)."""

from torch import Tensor

from ..kernels.farthest import farthest_point_ranking
from ..selector_registry import register_selector
from .context import Context


@register_selector("diversity", needs_attention=False, merges=False)
def diversity(ctx: Context) -> Tensor:
    """Greedy max-min cosine distance over the hidden states of the visual tokens.

    Returns:
        ``[B, S]`` float32: the earlier chosen, the higher.
    """
    return farthest_point_ranking(ctx.hidden, ctx.is_visual, ctx.budget, ctx.kept)

"""VisionDrop (arXiv 2506.22283)."""

from __future__ import annotations

from torch import Tensor

from ..kernels.received_from_all import received_from_all
from ..selector_registry import register_selector
from .context import Context


@register_selector("visiondrop", merges=False)
def visiondrop(ctx: Context) -> Tensor:
    """The attention that a token receives from the visual tokens, mean over them and over heads; no text is asked.

    The attention is the layer's own, with its mask: under a causal one, early tokens can receive from more others.

    This is the rule by which the paper chooses its dominant tokens, at a cut in the language model. Left out: the
    tokens that it merges from the others, and the stage in the vision encoder. The authors' code asks the first layer
    after a cut, where here the last before it is asked.

    Returns:
        ``[B, S]`` float32.
    """
    visual = ctx.is_visual.sum(1, keepdim=True).clamp_min(1)
    mask = ~ctx.is_padding[:, None, None] if ctx.is_causal else ctx.mask
    weight = ctx.is_visual / visual
    return received_from_all(ctx.query, ctx.grouped_key, weight, mask, ctx.scale, ctx.sinks, ctx.is_causal)

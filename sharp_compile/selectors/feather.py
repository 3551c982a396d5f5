"""FEATHER ("Feather the Throttle", arXiv 2412.13180)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.attention_column_sums import attention_column_sums
from ..selector_registry import register_selector
from .context import Context, among
from .uniform import spread


@register_selector("feather", merges=False)
def feather(ctx: Context) -> Tensor:
    """Return attention from the last position without rotary embedding, after a sample of all places.

    The rotary embedding makes the last position prefer tokens near it, whatever they show. Its attention is therefore
    taken from queries and keys without it, over the visual tokens only, mean over heads; and tokens that are spread
    over all places come first: ``3 * n // 10`` of the n that a row keeps, chosen as by ``uniform``. The other places
    go to the highest scores among the other tokens.

    The authors' code unites the 30 % with the highest scores and every third token of every third line of the picture,
    which are about 3 tenths of the union. Here a row keeps an exact number, and a graph does not show the lines of a
    picture. The code drops before layers 8 and 16 of 32, to 0.38 and 0.09 of the tokens, with the sample at the first
    only; here each of ``stages=[(7, 0.38), (15, 0.09)]`` has its sample. Where the graph shows no key before its rotary
    embedding (multi-head latent attention), the scores contain it.

    Returns:
        ``[B, S]`` float32, 2 and more for the sample and at most 1 for the others.
    """
    visible = ctx.visible_to(ctx.last) & ctx.is_visual[:, None, None, :]
    weight = torch.ones_like(ctx.is_visual[:, :1], dtype=torch.float32)
    query = among(ctx.query_unrotated)(ctx.last)
    scores = attention_column_sums(query, ctx.grouped_key_unrotated, weight, visible, ctx.scale)
    return scores + 2 * spread(ctx.is_visual, 3 * ctx.budget // 10)

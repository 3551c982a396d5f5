"""SparseVLM (arXiv 2410.04417)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.attention_column_sums import attention_column_sums
from ..kernels.gather import gather_tokens
from ..selector_registry import register_selector
from .context import Context
from .sharp.text import text_rows


@register_selector("sparsevlm", merges=False)
def sparsevlm(ctx: Context) -> Tensor:
    """Return the attention of the text tokens that are about the picture, mean over them and over heads.

    These raters are the text tokens whose relevance ``r_t = mean_v softmax_t(h_v . h_t)`` is not below the mean over
    the text, with h the hidden states that enter the layer, v the visual tokens and t the text after the last of them
    (its last 64 tokens, where there are more).

    The paper chooses the raters once, by the embeddings that enter the first layer; here each layer that scores chooses
    its own. The share that is kept is the user's, not one for each layer by the rank of its attention, and nothing of
    the dropped tokens is recycled into merged ones: these two parts of the paper are left out.

    Returns:
        ``[B, S]`` float32.
    """
    rows, is_text = text_rows(ctx)
    raters = _raters(ctx, rows, is_text).to(torch.float32)
    weight = raters / raters.sum(1, keepdim=True)
    key, mask = ctx.keys_and_mask_of(rows)
    received = attention_column_sums(ctx.queries(rows), key, weight, mask, ctx.scale)
    return received[:, : ctx.is_visual.shape[1]]


def _raters(ctx: Context, rows: Tensor, is_text: Tensor) -> Tensor:
    """Which of the positions `rows` ``[B, T]`` are raters, ``[B, T]`` bool, of those that are text ``[B, T]``."""
    hidden = ctx.hidden.float()
    logits = hidden @ gather_tokens(hidden, rows, 1, 0).transpose(1, 2)
    likeness = logits.masked_fill(~is_text[:, None], float("-inf")).softmax(2)
    # A sum is as good as a mean: it is compared with its own mean.
    relevance = likeness.where(ctx.is_visual[..., None], 0).sum(1)
    mean = relevance.sum(1, keepdim=True) / is_text.sum(1, keepdim=True)
    # The highest is no less than the mean, but for rounding.
    return is_text & (relevance >= mean.minimum(relevance.amax(1, keepdim=True)))

"""ShaRP (arXiv 2512.05385), in a first version.

The paper's formulas could not be read; what is built here is ours, after its description: attention in
shallow layers is biased by position alone, and that share is estimated and taken off.
"""

import torch
from torch import Tensor

from .context import Context

_MOST_ROWS = 64


def sharp(ctx: Context, debias: str | None) -> Tensor:
    """How much the text behind the video attends to each token, beyond what its position explains.

    The text rows are those behind the last visual token, the last 64 of them where there are more; the last
    position is always one. Their attention probabilities are averaged over rows and heads.

    With ``debias="rotary"`` the same rows attend once more, to keys without content: every visual key is
    replaced by the mean of all unrotated visual keys of its row and head, rotated to the position. These
    probabilities are subtracted.

    Returns:
        ``[B, S]`` float32.
    """
    rows, weight = _text_rows(ctx)
    scores = ctx.attention(rows)
    if debias is not None:
        scores = scores - ctx.attention(rows, _keys_without_content(ctx))
    return (scores.mean(1) * weight[:, :, None]).sum(1)


def _text_rows(ctx: Context) -> tuple[Tensor, Tensor]:
    """The positions of the last rows ``[T]``, and what each counts in each batch row ``[B, T]``."""
    length = ctx.is_visual.shape[1]
    position = torch.arange(length, device=ctx.is_visual.device)
    # A fixed number of rows, so that no length is compared with it; those before the start count nothing.
    wanted = torch.arange(_MOST_ROWS, device=position.device) + (length - _MOST_ROWS)
    last_visual = position.where(ctx.is_visual, -1).amax(1, keepdim=True)
    counts = (wanted > last_visual) & (wanted >= 0)
    rows = wanted.clamp_min(0)
    counts = (counts & ~ctx.is_padding[:, rows]) | (wanted == length - 1)
    weight = counts.to(torch.float32)
    return rows, weight / weight.sum(1, keepdim=True)


def _keys_without_content(ctx: Context) -> Tensor:
    """Keys like ``ctx.grouped_key``, those of visual tokens replaced by their rotated mean."""
    unrotated = ctx.grouped_key_unrotated
    visual = ctx.is_visual[:, None, :, None]
    count = visual.sum(2, keepdim=True).clamp_min(1)
    mean = (unrotated.float() * visual).sum(2, keepdim=True) / count
    return ctx.rotate(mean.to(unrotated.dtype).expand_as(unrotated)).where(visual, ctx.grouped_key)

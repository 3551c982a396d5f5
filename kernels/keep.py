"""From scores to kept positions: the rule "What is kept".

A row keeps, in this order, as long as there is room: text, visual tokens by score up to its own share, padding after
or between real tokens, the other visual tokens by score, and padding in front of its first real token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def leading(is_padding: Tensor) -> Tensor:
    """Return which padding is in front of the first real token of its row.

    Args:
        is_padding: ``[B, S]`` bool.

    Returns:
        ``[B, S]`` bool.
    """
    return (~is_padding).cumsum(1) == 0


def keep_counts(
    is_visual: Tensor, is_padding: Tensor, is_leading: Tensor, least: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Count what each row keeps beside text.

    Args:
        is_visual: ``[B, S]`` bool, real tokens only.
        is_padding: ``[B, S]`` bool.
        is_leading: ``[B, S]`` bool, the padding in front of the first real token.
        least: ``[B]`` int64, how many visual tokens are kept before any other padding is.
        keep: How many positions a row keeps.

    Returns:
        The numbers of visual tokens, of leading padding and of other padding that are kept, ``[B]`` int64 each.
    """
    visual = is_visual.sum(1)
    other = (is_padding & ~is_leading).sum(1)
    room = (keep - (~is_visual & ~is_padding).sum(1)).clamp_min(0)
    first = least.minimum(visual).minimum(room)
    room = room - first
    kept_other = other.minimum(room)
    room = room - kept_other
    surplus = (visual - first).minimum(room)
    return first + surplus, room - surplus, kept_other


def keep_positions(
    scores: Tensor, is_visual: Tensor, is_padding: Tensor, is_leading: Tensor, least: Tensor, keep: int
) -> Tensor:
    """Return the ``keep`` most important positions of each row, in ascending order.

    Ties go to the lower position.

    Args:
        scores: ``[B, S]``, higher is more important; read at visual positions only. NaN counts as lowest.
        is_visual: As in ``keep_counts``, like all that follow.
        is_padding: See there.
        is_leading: See there.
        least: See there.
        keep: See there.

    Returns:
        ``[B, keep]`` int64. Of a row with more text than that, its first text tokens.
    """
    limits = torch.finfo(torch.float32)
    ranked = scores.float().nan_to_num(nan=limits.min, posinf=limits.max, neginf=limits.min)
    order = ranked.where(is_visual, float("-inf")).argsort(dim=1, descending=True, stable=True)
    position = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    rank = torch.zeros_like(order).scatter(1, order, position)
    visual, in_front, other = keep_counts(is_visual, is_padding, is_leading, least, keep)
    is_other = is_padding & ~is_leading
    kept = (
        (~is_visual & ~is_padding)
        | (is_visual & (rank < visual[:, None]))
        | (is_leading & (position < in_front[:, None]))
        | (is_other & (is_other.cumsum(1) <= other[:, None]))
    )
    return position.where(kept, scores.shape[1]).sort(dim=1).values[:, :keep]

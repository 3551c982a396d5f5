"""From scores to kept positions: the rule "What is kept".

A row keeps, in this order, as long as there is room: text, visual tokens by score up to its own share, padding after
or between real tokens, the other visual tokens by score, and padding in front of its first real token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KeepCounts(NamedTuple):
    """How many tokens each row keeps beside text: ``[B]`` int64 each."""

    visual: Tensor
    leading: Tensor  # padding in front of the first real token
    other: Tensor  # padding anywhere else


def leading(is_padding: Tensor) -> Tensor:
    """Return which padding is in front of the first real token of its row.

    Args:
        is_padding: ``[B, S]`` bool.

    Returns:
        ``[B, S]`` bool.
    """
    return (~is_padding).cumsum(1) == 0


def keep_counts(is_visual: Tensor, is_padding: Tensor, is_leading: Tensor, least: Tensor, keep: int) -> KeepCounts:
    """Count what each row keeps beside text.

    Args:
        is_visual: ``[B, S]`` bool, real tokens only.
        is_padding: ``[B, S]`` bool.
        is_leading: ``[B, S]`` bool, the padding in front of the first real token.
        least: ``[B]`` int64, how many visual tokens are kept before any other padding is.
        keep: How many positions a row keeps.
    """
    visual = is_visual.sum(1)
    other = (is_padding & ~is_leading).sum(1)
    room = (keep - (~is_visual & ~is_padding).sum(1)).clamp_min(0)
    first = least.minimum(visual).minimum(room)
    room = room - first
    kept_other = other.minimum(room)
    room = room - kept_other
    surplus = (visual - first).minimum(room)
    return KeepCounts(first + surplus, room - surplus, kept_other)


def keep_positions(
    scores: Tensor, is_visual: Tensor, is_padding: Tensor, is_leading: Tensor, counts: KeepCounts, keep: int
) -> Tensor:
    """Return the ``keep`` most important positions of each row, in ascending order.

    Ties go to the lower position.

    Args:
        scores: ``[B, S]``, higher is more important; read at visual positions only. NaN counts as lowest.
        is_visual: ``[B, S]`` bool, real tokens only.
        is_padding: ``[B, S]`` bool.
        is_leading: ``[B, S]`` bool, the padding in front of the first real token.
        counts: What ``keep_counts`` returns for these and ``keep``.
        keep: How many positions a row keeps.

    Returns:
        ``[B, keep]`` int64. Of a row with more text than that, its first text tokens.
    """
    limits = torch.finfo(torch.float32)
    ranked = scores.float().nan_to_num(nan=limits.min, posinf=limits.max, neginf=limits.min)
    order = ranked.where(is_visual, float("-inf")).argsort(dim=1, descending=True, stable=True)
    position = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    rank = torch.zeros_like(order).scatter(1, order, position)
    is_other = is_padding & ~is_leading
    kept = (
        (~is_visual & ~is_padding)
        | (is_visual & (rank < counts.visual[:, None]))
        | (is_leading & (position < counts.leading[:, None]))
        | (is_other & (is_other.cumsum(1) <= counts.other[:, None]))
    )
    return position.where(kept, scores.shape[1]).sort(dim=1).values[:, :keep]

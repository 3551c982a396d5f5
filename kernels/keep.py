"""From scores to kept positions: the rule "What is kept"."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_positions(scores: Tensor, is_visual: Tensor, is_padding: Tensor, keep: int) -> Tensor:
    """The `keep` most important positions of each row, in ascending order.

    Text comes before visual tokens, those by score, and padding last; ties go to the lower position.

    Args:
        scores: ``[B, S]``, higher is more important; read at visual positions only. NaN counts as lowest.
        is_visual: ``[B, S]`` bool.
        is_padding: ``[B, S]`` bool.
        keep: how many positions a row keeps.

    Returns:
        ``[B, keep]`` int64.
    """
    limits = torch.finfo(torch.float32)
    ranked = scores.float().nan_to_num(nan=limits.min, posinf=limits.max, neginf=limits.min)
    ranked = ranked.where(is_visual, float("inf")).masked_fill(is_padding, float("-inf"))
    order = ranked.argsort(dim=1, descending=True, stable=True)
    return order[:, :keep].sort(dim=1).values

"""A row of tokens, moved."""

from __future__ import annotations

import torch
from torch import Tensor


def shifted(value: Tensor, by: int, fill: int | bool) -> Tensor:
    """``value`` ``[B, S]`` one position later (``by=1``) or earlier (``by=-1``), ``fill`` where nothing comes in."""
    # Not torch.nn.functional.pad, which turns symbolic sizes into numbers.
    edge = torch.full_like(value[:, :1], fill)
    return torch.cat([edge, value[:, :-1]] if by > 0 else [value[:, 1:], edge], dim=1)

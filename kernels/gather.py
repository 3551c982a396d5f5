"""Tensors at the kept positions."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_tokens(value: Tensor, positions: Tensor, axis: int, batch_axis: int | None) -> Tensor:
    """`value` at `positions` along its token axis, each row of the batch at its own.

    Args:
        value: any shape. Where the axis of rows has size 1, it is read for every row.
        positions: ``[B, N]`` int64.
        axis: the token axis of `value`.
        batch_axis: its axis of rows; None where it has none and B is 1.

    Returns:
        `value` with N at `axis` and B at `batch_axis`.
    """
    if batch_axis is None:
        positions, batch_axis = positions[0], axis
    elif batch_axis > axis:
        positions = positions.t()
    # The index has the rank of the value, and size 1 along all other axes.
    wanted = {axis, batch_axis}
    index = positions[tuple(slice(None) if place in wanted else None for place in range(value.ndim))]
    return torch.take_along_dim(value, index, axis)

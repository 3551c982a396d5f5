"""Tensors at the kept positions."""

from __future__ import annotations

from torch import Tensor


def gather_tokens(value: Tensor, positions: Tensor, axis: int, batch_axis: int | None) -> Tensor:
    """``value`` at ``positions`` along its token axis, each row of the batch at its own.

    Args:
        value: any shape. Where the axis of rows has size 1, it is read for every row.
        positions: ``[B, N]`` int64.
        axis: the token axis of ``value``.
        batch_axis: its axis of rows; None where it has none and B is 1.

    Returns:
        ``value`` with N at ``axis`` and B at ``batch_axis``.
    """
    rows, kept = positions.shape
    sizes = list(value.shape)
    place: list[slice | None] = [None] * value.ndim
    place[axis] = slice(None)
    if batch_axis is None:
        positions = positions[0]
    else:
        place[batch_axis] = slice(None)
        sizes[batch_axis] = rows
        value = value.expand(sizes)
        positions = positions.t() if batch_axis > axis else positions
    sizes[axis] = kept
    # Not take_along_dim, which broadcasts in the same way but turns symbolic sizes into numbers.
    return value.gather(axis, positions[tuple(place)].expand(sizes))

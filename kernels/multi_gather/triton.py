"""Gathers of several tensors at the same positions, in one Triton launch for up to eight of them.

What the layers after a cut need is small (hidden states, rotary embeddings, masks, keys): launches cost as
much as the copies. The programs of one launch are dealt out to the tensors in turn: each has a stretch of program
numbers, and copies one tile of rows (a plane and a kept position each) by columns. Elements are moved as
integers of their size, whatever they mean.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of kernels have the types of what they are launched with)

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOGETHER = 8
_TILE = 2048
_WARPS = 4
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def multi_gather(values: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
    """See ``sharp_compile.kernels.multi_gather.multi_gather``."""
    rows, kept = positions.shape
    results = [value.new_empty((rows, value.shape[1], kept, value.shape[3])) for value in values]
    pairs = [(value, result) for value, result in zip(values, results, strict=True) if result.numel()]
    for start in range(0, len(pairs), _TOGETHER):
        _launch(pairs[start : start + _TOGETHER], positions)
    return results


def _launch(pairs: Sequence[tuple[Tensor, Tensor]], positions: Tensor) -> None:
    rows, kept = positions.shape
    blocks, programs = [], 0
    for value, _ in pairs:
        planes, width = value.shape[1], value.shape[3]
        columns = min(128, triton.next_power_of_2(width))
        blocks.append((_TILE // columns, columns))
        programs += triton.cdiv(planes * kept, _TILE // columns) * triton.cdiv(width, columns)
    _gather[programs, rows](
        tuple(value.view(_INTEGERS[value.element_size()]) for value, _ in pairs),
        tuple(result.view(_INTEGERS[result.element_size()]) for _, result in pairs),
        tuple((value.shape[1], value.shape[3]) for value, _ in pairs),
        tuple(value.expand(rows, -1, -1, -1).stride() for value, _ in pairs),
        positions, kept, *positions.stride(), tuple(blocks), num_warps=_WARPS,
    )  # fmt: skip


# The number of kept tokens is different in every call: nothing is compiled for whether 16 divides it.
@triton.jit(do_not_specialize=["kept"])
def _gather(sources, targets, shapes, strides, positions, kept, position_batch, position_token, BLOCKS: tl.constexpr):
    """Program ``(i, b)`` copies one tile of row b of the tensor whose stretch of program numbers holds i."""
    tile = tl.program_id(0)
    for i in tl.static_range(len(sources)):
        # What is left of the program's number is that of a tile, where it is its tensor's turn.
        tile -= _copy(
            sources[i], targets[i], shapes[i], strides[i], positions, kept, position_batch, position_token, tile,
            BLOCKS[i][0], BLOCKS[i][1],
        )  # fmt: skip


@triton.jit
def _copy(
    source, target, shape, strides, positions, kept, position_batch, position_token, tile,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Copy one tile of a tensor, if it has one of this number. Return how many it has."""
    planes, width = shape
    across = (width + COLUMNS - 1) // COLUMNS
    tiles = (planes * kept + ROWS - 1) // ROWS * across
    if (tile >= 0) & (tile < tiles):
        batch = tl.program_id(1).to(tl.int64)
        row = tile // across * ROWS + tl.arange(0, ROWS)
        column = (tile % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        inside = row < planes * kept
        token = tl.load(positions + batch * position_batch + row % kept * position_token, mask=inside, other=0)
        place = batch * strides[0] + (row // kept).to(tl.int64) * strides[1] + token * strides[2]
        both = inside[:, None] & (column < width)[None, :]
        moved = tl.load(source + place[:, None] + column[None, :] * strides[3], mask=both)
        where = (batch * planes * kept + row)[:, None] * width + column[None, :]
        tl.store(target + where, moved, mask=both)
    return tiles

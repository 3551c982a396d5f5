"""Arranges what became of the visual tokens of one row by frames."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from .cells import Grid

_STRIP = 28
"""How many tokens stand side by side where no grid is known."""


@dataclass(frozen=True)
class Tokens:
    """The V visual tokens of one row, in the order of the sequence; each field is ``[V]``.

    Attributes:
        scores: float32.
        kept: bool.
        frame: the number of each token's frame, int64.
        segment: the number of its segment; None where there are none.
    """

    scores: np.ndarray
    kept: np.ndarray
    frame: np.ndarray
    segment: np.ndarray | None

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The rank of each token by score, ``[V]`` int64: 0 is the highest; ties go to the first."""
        ranks = np.empty(len(self.scores), np.int64)
        ranks[np.argsort(-self.scores, kind="stable")] = np.arange(len(self.scores))
        return ranks


@dataclass(frozen=True)
class Tile:
    """A frame's tokens, as a picture of ``rows x columns`` cells.

    Attributes:
        name: what it stands for, in words.
        tokens: ``[rows, columns]`` int64: the number of the visual token of each cell, -1 where there is none.
        picture: the number of the picture that it lies on; None where it lies on none.
    """

    name: str
    tokens: np.ndarray
    picture: int | None = None


def arrange(tokens: Tokens, grid: Grid | None) -> list[Tile]:
    """Return parts visual tokens into tiles, by the grid, or else by the frames that the model's graph shows.

    A frame of a square number of tokens is drawn as a square: most vision towers see squares. Others are drawn as
    strips, in the order of the sequence.
    """
    number = np.arange(len(tokens.scores))
    if grid is not None:
        name = "frame" if grid.times > 1 else "image"
        tiles = [Tile(f"{name} {time}", cells, time) for time, cells in enumerate(grid.spread(number))]
        rest = number[grid.cells :]
        return [*tiles, Tile("not on a frame", _strip(rest))] if len(rest) else tiles
    tiles = []
    for frame in np.unique(tokens.frame):
        own = number[tokens.frame == frame]
        side = round(len(own) ** 0.5)
        is_square = side > 1 and side * side == len(own)
        tiles.append(Tile(f"frame {frame}", own.reshape(side, side) if is_square else _strip(own)))
    return tiles


def _strip(numbers: np.ndarray) -> np.ndarray:
    columns = min(len(numbers), _STRIP)
    rows = -(-len(numbers) // columns)
    return np.pad(numbers, (0, rows * columns - len(numbers)), constant_values=-1).reshape(rows, columns)

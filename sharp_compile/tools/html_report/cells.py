"""Which part of which frame a visual token stands for, as far as the shapes of a model's inputs tell.

Models lay their visual tokens out alike: one grid of cells after the other in time, each grid row by row. They
differ in how many frames one grid stands for and in how many cells it has. Processors either count patches
(``video_grid_thw``, ``image_grid_thw``), of which the model merges squares, or hand over frames of one size, each
of which becomes a square of cells; one more token may close the video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The visual tokens of one video or image: ``times`` grids of ``rows x columns`` cells.

    Tokens after the last cell stand for no part of a frame.
    """

    times: int
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """The number of cells, and so of the visual tokens that have one."""
        return self.times * self.rows * self.columns

    def spread(self, tokens: np.ndarray) -> np.ndarray:
        """Arrange one value for each visual token, ``[V]``, as the cells are: ``[times, rows, columns]``."""
        return tokens[: self.cells].reshape(self.times, self.rows, self.columns)

    def frames_each(self, frames: int) -> int:
        """Return how many of the video's ``frames`` one grid stands for; the last grid may have fewer."""
        return math.ceil(frames / self.times)


def grid_of(inputs: Mapping[str, Any], visual_tokens: int) -> Grid | None:
    """Return how the visual tokens of one prompt lie on the frames of its video, or on its image.

    Args:
        inputs: The model's inputs. A batch has as many frames, or grids of patches, in each row.
        visual_tokens: The number V of visual tokens that a row has.

    Returns:
        The grid; ``None`` where the shapes allow none, or the prompt has several videos or images.
    """
    rows = len(inputs["input_ids"]) if isinstance(inputs.get("input_ids"), Tensor) else 1
    given = [name for name in ("pixel_values_videos", "pixel_values") if isinstance(inputs.get(name), Tensor)]
    if len(given) != 1 or visual_tokens == 0:
        return None
    patches = inputs.get("video_grid_thw" if given[0] == "pixel_values_videos" else "image_grid_thw")
    if isinstance(patches, Tensor):
        return _merged(patches, visual_tokens) if len(patches) == rows else None
    frames = frame_count(inputs[given[0]], rows)
    return None if frames is None else _squares(frames, visual_tokens)


def frame_count(pixels: Tensor, rows: int) -> int | None:
    """Return how many frames each of ``rows`` prompts has in ``[B, T, C, H, W]`` or ``[B * T, C, H, W]``."""
    if pixels.ndim == 5 and pixels.shape[0] == rows:
        return pixels.shape[1]
    if pixels.ndim == 4 and pixels.shape[0] % rows == 0:
        return pixels.shape[0] // rows
    return None


def _merged(patches: Tensor, visual_tokens: int) -> Grid | None:
    """Return the grid of patches ``[1, 3]``, of which squares became one token each."""
    times, rows, columns = patches[0].tolist()
    side = math.isqrt(times * rows * columns // visual_tokens)
    if side == 0 or rows % side or columns % side:
        return None
    grid = Grid(times, rows // side, columns // side)
    return grid if grid.cells == visual_tokens else None


def _squares(frames: int, visual_tokens: int) -> Grid | None:
    """As many squares as there are frames, and perhaps one token more."""
    for closing in (0, 1):
        cells, rest = divmod(visual_tokens - closing, frames)
        side = math.isqrt(cells)
        if side and rest == 0 and side * side == cells:
            return Grid(frames, side, side)
    return None

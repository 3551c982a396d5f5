"""Which part of which frame a visual token stands for.

The two families that the demo knows lay their visual tokens out alike: one grid of cells after the other in
time, each grid row by row. They differ in how many frames one grid stands for, in how many cells it has, and
in what follows the last of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Grid:
    """The visual tokens of one video: `times` grids of `rows x columns` cells, `frames` frames to a grid.

    Tokens after the last cell stand for no part of a frame.
    """

    times: int
    rows: int
    columns: int
    frames: int

    @property
    def cells(self) -> int:
        """The number of cells, and so of the visual tokens that have one."""
        return self.times * self.rows * self.columns

    def spread(self, tokens: np.ndarray) -> np.ndarray:
        """Arrange one value for each visual token, `[V]`, as the cells are: `[times, rows, columns]`."""
        return tokens[: self.cells].reshape(self.times, self.rows, self.columns)


def grid_of(config: Any, inputs: Mapping[str, Any], visual_tokens: int) -> Grid | None:
    """Return how the visual tokens of a model's inputs lie on the frames of the video.

    Args:
        config: The model's configuration.
        inputs: The model's inputs for one prompt with one video.
        visual_tokens: The number of visual tokens that the prompt has.

    Returns:
        The grid; `None` if the model is of a kind that this function doesn't know.
    """
    if config.model_type == "llava_onevision":
        # The features of each frame are pooled two by two, an odd row or column alone; one token that stands
        # for a line break follows the last frame.
        vision = config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        grid = Grid(inputs["pixel_values_videos"].shape[1], side, side, 1)
        return grid if visual_tokens == grid.cells + 1 else None
    if config.model_type in ("qwen2_vl", "qwen2_5_vl"):
        # The processor counts in patches, of which the vision tower merges squares.
        vision = config.vision_config
        times, rows, columns = inputs["video_grid_thw"][0].tolist()
        merge = vision.spatial_merge_size
        grid = Grid(times, rows // merge, columns // merge, vision.temporal_patch_size)
        return grid if visual_tokens == grid.cells else None
    return None

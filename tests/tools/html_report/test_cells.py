"""Which cell a visual token stands for, against what the models themselves do with their features."""

import numpy as np
import pytest
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
)

from sharp_compile.tools.html_report.cells import Grid, grid_of

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}


@pytest.mark.parametrize(("image_size", "patch_size"), [(384, 14), (224, 14), (90, 10)])
def test_llava_onevision_cells_are_where_the_model_pools_its_features(image_size, patch_size):
    frames = 3
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": patch_size,
        },
    )
    # Each patch says which frame it is of and where its middle is, as shares of the frame's height and width.
    side = image_size // patch_size
    middles = (torch.arange(side) + 0.5) / side
    frame = torch.arange(frames)[:, None, None].expand(frames, side, side).float()
    features = torch.stack([frame, middles[:, None].expand_as(frame), middles.expand_as(frame)], dim=-1)
    pooled = LlavaOnevisionModel(config).apply_pooling(features.reshape(frames, side * side, 3))
    tokens = pooled.reshape(-1, 3).numpy()

    inputs = {"pixel_values_videos": torch.zeros(1, frames, 3, image_size, image_size)}
    grid = grid_of(inputs, len(tokens) + 1)
    assert grid is not None
    newline = np.full((1, 3), np.nan, dtype=np.float32)
    cells = np.stack([grid.spread(column) for column in np.concatenate([tokens, newline]).T], axis=-1)
    for time, row, column in np.ndindex(*cells.shape[:3]):
        assert round(float(cells[time, row, column, 0]), 4) == time
        y, x = cells[time, row, column, 1] * grid.rows, cells[time, row, column, 2] * grid.columns
        assert row - 1e-4 <= y <= row + 1 + 1e-4 and column - 1e-4 <= x <= column + 1 + 1e-4


def test_qwen_cells_are_where_the_rotary_positions_say():
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(
        text_config={"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}, **TEXT},
        vision_config=vision,
        vision_start_token_id=1,
        image_token_id=2,
        video_token_id=3,
    )
    patches = torch.tensor([[4, 6, 10]])
    visual = 4 * 3 * 5
    ids = torch.tensor([[7, 8, 1] + [3] * visual + [9]])
    kinds = 2 * (ids == 3).int()
    positions, _ = Qwen2_5_VLModel(config).get_rope_index(
        ids, mm_token_type_ids=kinds, video_grid_thw=patches, second_per_grid_ts=torch.ones(1)
    )
    place = positions[:, 0, 3 : 3 + visual].numpy()

    grid = grid_of({"pixel_values_videos": torch.zeros(4 * 6 * 10, 12), "video_grid_thw": patches}, visual)
    assert grid == Grid(4, 3, 5)
    times, rows, columns = (grid.spread(axis - axis.min()) for axis in place)
    np.testing.assert_array_equal(rows, np.arange(3)[None, :, None].repeat(4, 0).repeat(5, 2))
    np.testing.assert_array_equal(columns, np.arange(5)[None, None, :].repeat(4, 0).repeat(3, 1))
    assert np.all(np.diff(times[:, 0, 0]) > 0) and np.all(times == times[:, :1, :1])


@pytest.mark.parametrize(
    ("pixels", "rows", "visual", "grid"),
    [
        ({"pixel_values_videos": (1, 4, 3, 8, 8)}, 1, 4 * 196 + 1, Grid(4, 14, 14)),
        ({"pixel_values_videos": (1, 4, 3, 8, 8)}, 1, 4 * 196, Grid(4, 14, 14)),
        ({"pixel_values_videos": (1, 4, 3, 8, 8)}, 1, 4 * 196 + 2, None),
        ({"pixel_values_videos": (2, 3, 3, 8, 8)}, 2, 3 * 16, Grid(3, 4, 4)),
        ({"pixel_values_videos": (6, 3, 8, 8)}, 2, 3 * 16, Grid(3, 4, 4)),
        ({"pixel_values_videos": (5, 3, 8, 8)}, 2, 3 * 16, None),
        ({"pixel_values": (1, 3, 8, 8)}, 1, 576, Grid(1, 24, 24)),
        ({"pixel_values": (1, 3, 8, 8), "pixel_values_videos": (1, 4, 3, 8, 8)}, 1, 64, None),
        ({"pixel_values_videos": (40, 12)}, 1, 10, None),
        ({}, 1, 64, None),
        ({"pixel_values": (1, 3, 8, 8)}, 1, 0, None),
    ],
)
def test_frames_of_one_size_are_squares_of_cells(pixels, rows, visual, grid):
    inputs = {name: torch.zeros(shape) for name, shape in pixels.items()}
    inputs["input_ids"] = torch.zeros(rows, visual + 3, dtype=torch.long)
    assert grid_of(inputs, visual) == grid


@pytest.mark.parametrize(
    ("patches", "visual", "grid"),
    [
        ([[2, 4, 6]], 12, Grid(2, 2, 3)),
        ([[2, 4, 6]], 48, Grid(2, 4, 6)),
        ([[2, 4, 6]], 24, None),
        ([[1, 3, 6]], 4, None),
        ([[1, 4, 4], [1, 4, 4]], 8, None),  # two videos: which tokens are whose is not known
    ],
)
def test_patches_are_merged_by_squares(patches, visual, grid):
    inputs = {"pixel_values_videos": torch.zeros(1, 12), "video_grid_thw": torch.tensor(patches)}
    assert grid_of(inputs, visual) == grid


def test_how_many_frames_a_grid_stands_for():
    assert [Grid(times, 2, 2).frames_each(frames) for times, frames in ((4, 4), (4, 8), (4, 7), (1, 1))] == [1, 2, 2, 1]

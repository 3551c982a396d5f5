"""Qwen2-VL and Qwen2.5-VL: patches in a (time, height, width) grid, merged 2x2; three-axis positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from tests.architectures.base import (
    IMAGE,
    ROPE,
    VIDEO,
    VISION_END,
    VISION_START,
    Architecture,
    Inputs,
)

PATCH, TEMPORAL_PATCH, MERGE = 4, 2, 2
HEIGHT, WIDTH = 4, 8  # of a frame, in patches


class Qwen2VL(Architecture):
    """8 visual tokens for every two frames, in one span; `video_grid_thw` [B, 3]."""

    name = "qwen2_vl"
    frames_per_block = TEMPORAL_PATCH
    tokens_per_block = HEIGHT * WIDTH // MERGE**2
    config_class = "Qwen2VLConfig"
    model_class = "Qwen2VLForConditionalGeneration"

    def vision(self, hidden: int) -> dict[str, Any]:
        """The vision tower's config, `hidden` being the text model's width."""
        return {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": hidden,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL_PATCH,
        }

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        pairs = text["hidden_size"] // text["num_attention_heads"] // 2
        height = width = 3 * pairs // 8
        rope = {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [pairs - height - width, height, width],
        }
        config = getattr(transformers, self.config_class)(
            text_config={**text, ROPE: rope},
            vision_config=self.vision(text["hidden_size"]),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
        )
        return getattr(transformers, self.model_class)._from_config(config, attn_implementation=attn_implementation)

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        """0 for text and 2 for video, from which the positions of the three axes are made [B, S]."""
        return {"mm_token_type_ids": 2 * (input_ids == VIDEO).int()}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        grid = torch.tensor([[count // TEMPORAL_PATCH, HEIGHT, WIDTH] for count in frames])
        patches = [
            torch.randn(int(thw.prod()), 3 * TEMPORAL_PATCH * PATCH**2, generator=g)
            for thw, g in zip(grid, generators, strict=True)
        ]
        return {"pixel_values_videos": torch.cat(patches), "video_grid_thw": grid}


class Qwen2_5VL(Qwen2VL):
    """As Qwen2-VL, with windowed attention in the tower (the second block attends to the whole frame)."""

    name = "qwen2_5_vl"
    config_class = "Qwen2_5_VLConfig"
    model_class = "Qwen2_5_VLForConditionalGeneration"

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": hidden,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL_PATCH,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        }


QWEN2_VL = Qwen2VL()
QWEN2_5_VL = Qwen2_5VL()

"""VideoLLaMA3: patches in a grid, a text token (the timestamp) between the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from tests.architectures.base import IMAGE, TOWER, VIDEO, Architecture, Inputs

PATCH, MERGE = 4, 2
HEIGHT, WIDTH = 4, 4  # of a frame, in patches


class VideoLlama3(Architecture):
    """4 visual tokens a frame; `video_grid_thw` [B, 3], `video_merge_sizes` [B]."""

    name = "video_llama_3"
    model_class = "VideoLlama3ForConditionalGeneration"
    tokens_per_block = HEIGHT * WIDTH // MERGE**2
    separated = True

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        vision = transformers.VideoLlama3VisionConfig(
            **TOWER,
            patch_size=PATCH,
        )
        config = transformers.VideoLlama3Config(
            vision_config=vision,
            text_config=transformers.Qwen2Config(**text),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        grid = torch.tensor([[count, HEIGHT, WIDTH] for count in frames])
        patches = [
            torch.randn(int(thw.prod()), 3 * PATCH**2, generator=g) for thw, g in zip(grid, generators, strict=True)
        ]
        return {
            "pixel_values_videos": torch.cat(patches),
            "video_grid_thw": grid,
            "video_merge_sizes": torch.full((len(frames),), MERGE),
        }


VIDEO_LLAMA_3 = VideoLlama3()

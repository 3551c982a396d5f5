"""LLaVA-OneVision: a SigLIP tower, frames pooled 2x2, one newline token after the video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PretrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.architectures.base import IMAGE, TOWER, VIDEO, Architecture, Inputs


class LlavaOnevision(Architecture):
    """4 visual tokens a frame and a newline; `pixel_values_videos` [B, F, 3, 16, 16], so F is one number."""

    name = "llava_onevision"
    model_class = "LlavaOnevisionForConditionalGeneration"
    ragged = False
    tokens_per_block = 4
    extra_tokens = 1
    shows_frames = False  # one run of tokens, from a tower in another graph

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        vision = SiglipVisionConfig(
            **TOWER,
            image_size=16,
            patch_size=4,
            vision_use_head=False,
        )
        config = LlavaOnevisionConfig(
            vision_config=vision,
            text_config=self.text_config(text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[16, 16]],
        )
        return LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)

    def text_config(self, text: dict[str, Any]) -> PretrainedConfig:
        """The text model's config; any decoder may be in its place."""
        return Qwen2Config(**text)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        videos = [torch.randn(count, 3, 16, 16, generator=g) for count, g in zip(frames, generators, strict=True)]
        return {"pixel_values_videos": torch.stack(videos)}


LLAVA_ONEVISION = LlavaOnevision()

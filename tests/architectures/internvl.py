"""InternVL: frames are images, each followed by a text token; pixel unshuffle leaves 4 tokens a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2Config,
)

from tests.architectures.base import IMAGE, TOWER, Architecture, Inputs


class InternVL(Architecture):
    """4 visual tokens a frame; `pixel_values` [sum of F, 3, 16, 16]. There is no video token: images only."""

    name = "internvl"
    model_class = "InternVLForConditionalGeneration"
    tokens_per_block = 4
    separated = True
    visual_token = IMAGE

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        vision = InternVLVisionConfig(
            **TOWER,
            image_size=16,
            patch_size=4,
        )
        config = InternVLConfig(
            vision_config=vision,
            text_config=Qwen2Config(**text),
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
        return InternVLForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        images = [torch.randn(count, 3, 16, 16, generator=g) for count, g in zip(frames, generators, strict=True)]
        return {"pixel_values": torch.cat(images)}


INTERNVL = InternVL()

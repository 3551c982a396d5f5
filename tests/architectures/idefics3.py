"""Idefics3 and SmolVLM: frames are images of a row, pixels shuffled to fewer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tests.architectures.base import IMAGE, PAD, Inputs
from tests.architectures.llava import PATCH, SIZE, Llava


class Idefics3(Llava):
    """4 visual tokens an image, text between images; `pixel_values` [B, F, 3, 16, 16]."""

    name = "idefics3"
    ragged = False
    tokens_per_block = (SIZE // PATCH // 2) ** 2
    config_class = "Idefics3Config"
    model_class = "Idefics3ForConditionalGeneration"
    patch = PATCH
    vision_type = "idefics3_vision"

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        return {"pixel_values": self.images(frames, generators).unflatten(0, (len(frames), -1))}


class SmolVLM(Idefics3):
    """As Idefics3."""

    name = "smolvlm"
    config_class = "SmolVLMConfig"
    model_class = "SmolVLMForConditionalGeneration"
    vision_type = "smolvlm_vision"


IDEFICS3, SMOLVLM = Idefics3(), SmolVLM()

"""A vision tower in front of the decoder: SigLIP, a projector and a pooling, as LLaVA-OneVision has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, SiglipVisionConfig

_HEAD = 72
_IMAGE, _PATCH = 384, 14
_SIDE = 14
TOKENS_OF_FRAME = _SIDE**2
"""Visual tokens of a frame, of the 27 x 27 that the tower gives."""
FRAME = (3, _IMAGE, _IMAGE)
"""The shape of a frame."""


@dataclass(frozen=True)
class TowerShape:
    """The sizes of a tower: those of SigLIP so400m, unless scaled."""

    num_hidden_layers: int = 27
    num_attention_heads: int = 16

    def scaled(self, width: float, depth: float) -> TowerShape:
        """The tower of a decoder with `width` times the hidden size and `depth` times the layers, at least one."""
        heads = max(1, round(self.num_attention_heads * width))
        return TowerShape(max(1, round(self.num_hidden_layers * depth)), heads)

    @property
    def hidden_size(self) -> int:
        """Whole heads."""
        return _HEAD * self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """In SigLIP's proportion to the hidden size."""
        return round(self.hidden_size * 4304 / 1152)


class Tower(nn.Module):
    """Frames to visual tokens."""

    def __init__(self, shape: TowerShape, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            image_size=_IMAGE,
            patch_size=_PATCH,
            vision_use_head=False,
        )
        self.encoder: Any = AutoModel.from_config(config, attn_implementation="sdpa", dtype=dtype)
        self.projector = nn.Sequential(
            nn.Linear(shape.hidden_size, channels), nn.GELU(), nn.Linear(channels, channels)
        ).to(dtype)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames.

        Args:
            frames: ``[T, 3, 384, 384]`` float.

        Returns:
            ``[196 T, C]`` float.
        """
        patches = self.projector(self.encoder(frames).last_hidden_state)
        side = _IMAGE // _PATCH
        grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return F.interpolate(grid, size=(_SIDE, _SIDE), mode="bilinear").flatten(2).mT.flatten(0, 1)

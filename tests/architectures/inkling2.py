"""Inkling 2: biases by distance instead of rotary positions, short convolutions, attention over the layers before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tests.architectures.base import IMAGE, TOWER, VOCABULARY, Inputs
from tests.architectures.grid import MERGE, PATCH, WINDOW, Grid

GRID = 2  # visual tokens of a frame, in height and in width


class Inkling2(Grid):
    """4 visual tokens an image, text between; `pixel_values` [tokens, 8, 8, 3], `image_grid_thw` [sum of F, 3].

    Attention to tokens is always eager: no other takes the bias. Layers 1, 4 and so on have no sliding window.
    """

    name = "inkling2"
    typed = False
    separated = True
    temporal_patch = 1
    tokens_per_block = GRID**2
    visual_token = IMAGE
    config_class = "Inkling2Config"
    model_class = "Inkling2ForConditionalGeneration"
    text_type, vision_type = "inkling2_text", "inkling2_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {
            **text,
            "intermediate_size": 32,  # of an expert
            "unpadded_vocab_size": VOCABULARY,
            "head_dim": 16,
            "swa_num_attention_heads": text["num_attention_heads"],
            "swa_num_key_value_heads": text["num_key_value_heads"],
            "swa_head_dim": 16,
            "layer_types": ["hybrid" if i % 3 == 1 else "hybrid_sliding" for i in range(text["num_hidden_layers"])],
            "sliding_window_size": WINDOW,
            "d_rel": 4,
            "rel_extent": 32,  # less than a sequence
            "log_scaling_n_floor": 16,
            "n_layers_per_attn_res_block": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "route_scale": 1.0,
        }

    def tokens(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            **TOWER,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "posemb_grid_size": GRID * MERGE,
            "projection_hidden_dim": 64,
            "text_hidden_size": hidden,
        }

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        model = super().construct(text, "eager")
        model.model.vision_tower.set_attn_implementation(attn_implementation)
        return model

    def build(self, **options: Any) -> nn.Module:
        """With weights that no layer's matrix has: scales near one, profiles and queries that make a difference."""
        model = super().build(**options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("clip.scale"):
                    parameter.mul_(0.1).add_(1)
                elif name.endswith(("rel_logits_proj.proj", "_input.query")):
                    parameter.div_(parameter.std())
        return model

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        rows, side = zip(frames, generators, strict=True), PATCH * MERGE
        # One patch a visual token, colours from -1 to 1.
        patches = [torch.rand(count * GRID**2, side, side, 3, generator=g) for count, g in rows]
        grid = torch.tensor([[1, GRID, GRID]]).repeat(sum(frames), 1)
        return {"pixel_values": 2 * torch.cat(patches) - 1, "image_grid_thw": grid}


INKLING2 = Inkling2()

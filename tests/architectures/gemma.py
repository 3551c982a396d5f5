"""Gemma 3 and 4: most layers with a sliding window, tokens of one picture see each other."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, TOWER, VIDEO, VISION_END, VISION_START, Architecture, Inputs
from tests.architectures.grid import WINDOW, sliding
from tests.architectures.llava import PATCH, SIZE, Llava


class Gemma3(Llava):
    """4 visual tokens an image, text between images; `pixel_values` [sum of F, 3, 16, 16]."""

    name = "gemma3"
    tokens_per_block = 4
    config_class = "Gemma3Config"
    model_class = "Gemma3ForConditionalGeneration"
    patch = PATCH
    vision_type = "siglip_vision_model"
    tower = MappingProxyType({"vision_use_head": False})

    def text(self, text: dict[str, Any]) -> Any:
        kinds = {"layer_types": sliding(text, every=3), "sliding_window": WINDOW}
        return AutoConfig.for_model("gemma3_text", **text, head_dim=16, query_pre_attn_scalar=16, **kinds)

    def further(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "boi_token_index": VISION_START,
            "eoi_token_index": VISION_END,
            "mm_tokens_per_image": self.tokens_per_block,
        }

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"token_type_ids": (input_ids == IMAGE).int()}


class Gemma4(Architecture):
    """4 visual tokens a frame, text between frames; per-layer inputs, keys shared by the last two layers."""

    name = "gemma4"
    config_class = "Gemma4Config"
    model_class = "Gemma4ForConditionalGeneration"
    tokens_per_block = 4
    separated = True

    def vision(self) -> Any:
        """The config of the vision tower."""
        sizes = {"num_key_value_heads": 2, "head_dim": 16, "patch_size": PATCH, "pooling_kernel_size": 2}
        return AutoConfig.for_model("gemma4_vision", **TOWER, **sizes, position_embedding_size=64)

    def text(self, text: dict[str, Any]) -> Any:
        """The config of the decoder."""
        inputs = {"vocab_size_per_layer_input": text["vocab_size"], "hidden_size_per_layer_input": 8}
        kinds = {"layer_types": sliding(text, every=4), "sliding_window": WINDOW, "num_kv_shared_layers": 2}
        heads = {"head_dim": 16, "global_head_dim": 16}
        return AutoConfig.for_model("gemma4_text", **text, **heads, **inputs, **kinds)

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        layers = {"num_hidden_layers": max(text["num_hidden_layers"], 8)}
        config = getattr(transformers, self.config_class)(
            text_config=self.text(text | layers),
            vision_config=self.vision(),
            audio_config=None,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
            audio_token_id=188,
            boa_token_id=186,
            eoa_token_index=187,
            tie_word_embeddings=False,
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"mm_token_type_ids": 2 * (input_ids == VIDEO).int()}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        side = SIZE // PATCH
        rows = zip(frames, generators, strict=True)
        # Patches are shades of each colour from 0 to 1.
        patches = torch.cat([torch.rand(count, side**2, 3 * PATCH**2, generator=g) for count, g in rows])
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)
        return {
            "pixel_values_videos": patches,
            "video_position_ids": places.expand(len(patches), -1, -1),
            "num_frames_per_video": torch.tensor(frames),
        }


GEMMA3, GEMMA4 = Gemma3(), Gemma4()

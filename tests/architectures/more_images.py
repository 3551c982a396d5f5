"""More families of images, in the order of their towers: patches, convolutions, two towers, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, PAD, TOWER, Inputs, part
from tests.architectures.idefics3 import Idefics3
from tests.architectures.images import AyaVision, DeepseekVL
from tests.architectures.llava import PATCH, SIZE, Llava, Mistral3

SIDE = SIZE // PATCH


class Cohere2Vision(AyaVision):
    """4 visual tokens an image: as Aya Vision, each projected by a gated unit."""

    name = "cohere2_vision"
    config_class = "Cohere2VisionConfig"
    model_class = "Cohere2VisionForConditionalGeneration"

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "downsample_factor": 2, "alignment_intermediate_size": 64}


class LightOnOcr(Mistral3):
    """4 visual tokens an image: the tower of Mistral 3, a Qwen3 decoder."""

    name = "lighton_ocr"
    config_class = "LightOnOcrConfig"
    model_class = "LightOnOcrForConditionalGeneration"

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("qwen3", head_dim=16, **text)

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "spatial_merge_size": 2}


class PaliGemma(Llava):
    """16 visual tokens an image: all tokens of the prompt see each other, positions count from one."""

    name = "paligemma"
    config_class = "PaliGemmaConfig"
    model_class = "PaliGemmaForConditionalGeneration"
    patch = PATCH
    tokens_per_block = SIDE**2
    vision_type = "siglip_vision_model"
    tower = MappingProxyType({"vision_use_head": False})
    generated_type = 1

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("gemma", head_dim=16, **text)

    def further(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE, "projection_dim": 64}

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"token_type_ids": torch.zeros_like(input_ids)}


class FastVlm(Llava):
    """4 visual tokens an image: the last feature map of convolutions."""

    name = "fast_vlm"
    config_class = "FastVlmConfig"
    model_class = "FastVlmForConditionalGeneration"

    def vision(self) -> Any:
        # Its own tower needs timm, which needs torchvision; ConvNeXt gives the same: channels, then rows and columns.
        config = AutoConfig.for_model("convnext", num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], patch_size=PATCH)
        config.hidden_size = 32
        return config

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("qwen2", **text)

    def construct(self, text: dict[str, Any], attn_implementation: Any) -> nn.Module:
        # Convolutions have no attention to implement.
        return super().construct(text, {"text_config": attn_implementation, "vision_config": "eager"})


class DeepseekVLHybrid(DeepseekVL):
    """16 visual tokens an image: a second tower reads it larger, `high_res_pixel_values` [sum of F, 3, 32, 32]."""

    name = "deepseek_vl_hybrid"
    config_class = "DeepseekVLHybridConfig"
    model_class = "DeepseekVLHybridForConditionalGeneration"

    def further(self) -> dict[str, Any]:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
        places = {"image_size": 2 * SIZE, "patch_size": PATCH, "window_size": 2, "global_attn_indexes": [0]}
        high = AutoConfig.for_model("sam_vision_model", output_channels=8, **sizes, **places)
        return {**super().further(), "high_res_vision_config": high}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        images = self.images(frames, generators)
        large = nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
        return {"pixel_values": images, "high_res_pixel_values": large}


class Janus(Llava):
    """16 visual tokens an image. It can draw too: `generate` is its own, and goes on to the usual one for text."""

    name = "janus"
    config_class = "JanusConfig"
    model_class = "JanusForConditionalGeneration"
    patch = PATCH
    tokens_per_block = SIDE**2

    def vision(self) -> Any:
        sizes = {"projection_dim": 64, "mlp_ratio": 2.0, "num_image_tokens": SIDE**2}
        return {**TOWER, "image_size": SIZE, "patch_size": PATCH, **sizes}

    def further(self) -> dict[str, Any]:
        drawing = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 32}
        codes = {"num_embeddings": 16, "projection_dim": 64, "image_token_embed_dim": 64}
        return {"image_token_id": IMAGE, "vq_config": {**drawing, **codes}}


class Fuyu(Llava):
    """16 visual tokens an image: its patches, projected without a tower; `pixel_values` [B, patches, 48]."""

    name = "fuyu"
    ragged = False
    config_class = "FuyuConfig"
    model_class = "FuyuForCausalLM"
    tokens_per_block = SIDE**2

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        # Its decoder has as many key as query heads, and keeps them in one projection.
        sizes = {name: value for name, value in text.items() if name != "num_key_value_heads"}
        config = transformers.FuyuConfig(text_config=part("persimmon", **sizes), image_token_id=IMAGE, patch_size=PATCH)
        return transformers.FuyuForCausalLM._from_config(config, attn_implementation=attn_implementation)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        patches = SIDE**2 * frames[0]
        return {"pixel_values": torch.stack([torch.randn(patches, 3 * PATCH**2, generator=g) for g in generators])}


class GraniteDocling(Idefics3):
    """4 visual tokens a tile, pixels shuffled; others are added after three layers; `pixel_attention_mask`."""

    name = "granite_docling"
    config_class = "GraniteDoclingConfig"
    model_class = "GraniteDoclingForConditionalGeneration"

    def vision(self) -> Any:
        taps = {"deepstack_visual_indexes": [0, 1, 2], "scale_factor": 2, "out_hidden_size": 64}
        return {**TOWER, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": PATCH, **taps}

    def text(self, text: dict[str, Any]) -> Any:
        # Its own factors make a random model hardly depend on its images.
        factors = {"embedding_multiplier": 2.0, "residual_multiplier": 0.9, "attention_multiplier": 0.25}
        return AutoConfig.for_model("granite_docling_text", **text, **factors, logits_scaling=1.0)

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "pad_token_id": PAD}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        tiles = torch.ones(len(frames), max(frames), dtype=torch.bool)
        return {**super().pixels(model, frames, generators), "pixel_attention_mask": tiles}


COHERE2_VISION, LIGHTON_OCR, PALIGEMMA, FAST_VLM = Cohere2Vision(), LightOnOcr(), PaliGemma(), FastVlm()
DEEPSEEK_VL_HYBRID, JANUS, FUYU, GRANITE_DOCLING = DeepseekVLHybrid(), Janus(), Fuyu(), GraniteDocling()

"""Families of images, with towers and projections of many kinds and a plain decoder: a prompt has several of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, PAD, TOWER, Inputs
from tests.architectures.idefics3 import Idefics3
from tests.architectures.llava import PATCH, SIZE, Llava


class VipLlava(Llava):
    """4 visual tokens an image: features of several layers of a CLIP tower."""

    name = "vipllava"
    config_class = "VipLlavaConfig"
    model_class = "VipLlavaForConditionalGeneration"

    def further(self) -> dict[str, Any]:
        return {**super().further(), "vision_feature_layer": [-2, -1]}


class AyaVision(Llava):
    """4 visual tokens an image: a SigLIP tower, pixels shuffled to fewer tokens, a Cohere decoder with windows."""

    name = "aya_vision"
    config_class = "AyaVisionConfig"
    model_class = "AyaVisionForConditionalGeneration"
    patch = PATCH
    vision_type = "siglip_vision_model"
    tower = MappingProxyType({"vision_use_head": False})

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("cohere2", **text)

    def further(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE, "downsample_factor": 2}


class GotOcr2(Llava):
    """1 visual token an image: a tower of windows, whose features are halved twice."""

    name = "got_ocr2"
    config_class = "GotOcr2Config"
    model_class = "GotOcr2ForConditionalGeneration"
    tokens_per_block = 1

    def vision(self) -> Any:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
        places = {"image_size": SIZE, "patch_size": PATCH, "window_size": 2, "global_attn_indexes": [1]}
        return {"output_channels": 8, **sizes, **places}

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("qwen2", **text)

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        # Of its tower transformers has no other form.
        return super().construct(text, "eager")


class Idefics2(Idefics3):
    """3 visual tokens an image, from learned queries; `pixel_values` [B, F, 3, 16, 16]."""

    name = "idefics2"
    tokens_per_block = 3
    config_class = "Idefics2Config"
    model_class = "Idefics2ForConditionalGeneration"
    vision_type = "idefics2_vision"

    def vision(self) -> Any:
        return {**TOWER, "image_size": SIZE, "patch_size": PATCH}

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("mistral", sliding_window=None, **text)

    def further(self) -> dict[str, Any]:
        queries = {"resampler_n_latents": self.tokens_per_block, "resampler_depth": 1, "resampler_n_heads": 2}
        heads = {"hidden_size": 64, "resampler_head_dim": 16, "num_key_value_heads": 2}
        return {"image_token_id": IMAGE, "pad_token_id": PAD, "perceiver_config": {**queries, **heads}}


class DeepseekVL(Llava):
    """16 visual tokens an image: a SigLIP tower, a projection of two layers."""

    name = "deepseek_vl"
    config_class = "DeepseekVLConfig"
    model_class = "DeepseekVLForConditionalGeneration"
    patch = PATCH
    tokens_per_block = (SIZE // PATCH) ** 2
    vision_type = "siglip_vision_model"
    tower = MappingProxyType({"vision_use_head": False})

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE}


class QianfanOCR(Llava):
    """4 visual tokens an image: a tower with a class token, pixels shuffled to fewer tokens."""

    name = "qianfan_ocr"
    config_class = "QianfanOCRConfig"
    model_class = "QianfanOCRForConditionalGeneration"

    def vision(self) -> Any:
        return {**TOWER, "image_size": (SIZE, SIZE), "patch_size": (PATCH, PATCH)}

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("qwen3", head_dim=16, **text)

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "image_seq_length": self.tokens_per_block}


class Lfm2VL(Llava):
    """4 visual tokens an image: patches of images of any size, packed and merged; a decoder of convolutions too."""

    name = "lfm2_vl"
    config_class = "Lfm2VlConfig"
    model_class = "Lfm2VlForConditionalGeneration"
    patch = PATCH

    def vision(self) -> Any:
        return AutoConfig.for_model("siglip2_vision_model", **TOWER, num_patches=16, patch_size=PATCH)

    def text(self, text: dict[str, Any]) -> Any:
        kinds = ["conv", "full_attention"] * text["num_hidden_layers"]
        return AutoConfig.for_model("lfm2", layer_types=kinds[: text["num_hidden_layers"]], **text)

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "downsample_factor": 2, "projector_hidden_size": 32}

    def pixels(self, model: Any, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        images = self.images(frames, generators)
        side = SIZE // PATCH
        patches = images.unflatten(-1, (side, PATCH)).unflatten(-3, (side, PATCH)).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": patches.reshape(len(images), side**2, -1),
            "spatial_shapes": torch.full((len(images), 2), side),
            "pixel_attention_mask": torch.ones(len(images), side**2, dtype=torch.long),
        }


VIP_LLAVA, AYA_VISION, GOT_OCR2, IDEFICS2 = VipLlava(), AyaVision(), GotOcr2(), Idefics2()
DEEPSEEK_VL, QIANFAN_OCR, LFM2_VL = DeepseekVL(), QianfanOCR(), Lfm2VL()

"""Families with inputs of their own: Molmo2, Ovis2, Nemotron-H-Omni, MiniCPM-V 4.6."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, VIDEO, VOCABULARY, Architecture, Inputs
from tests.architectures.grid import delta_nets
from tests.architectures.llava import PATCH, SIZE, Llava

SIDE = SIZE // PATCH


class Molmo2(Architecture):
    """4 visual tokens a frame, each pooled from 2x2 patches, text between; features are added to embeddings."""

    name = "molmo2"
    model_class = "Molmo2ForConditionalGeneration"
    tokens_per_block = (SIDE // 2) ** 2
    separated = True
    visual_token = IMAGE

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
        heads = {"num_key_value_heads": 2}
        vision = transformers.Molmo2VisionConfig(
            **tower, **heads, num_hidden_layers=2, image_size=[SIZE, SIZE], patch_size=PATCH
        )
        adapter = transformers.Molmo2AdapterConfig(
            **tower, **heads, vision_feature_layer=[-1], text_hidden_size=text["hidden_size"]
        )
        config = transformers.Molmo2Config(
            vision_config=vision,
            adapter_config=adapter,
            text_config=transformers.Molmo2TextConfig(**text, head_dim=16, additional_vocab_size=8),
            image_patch_id=IMAGE,
            image_start_token_id=182,
            low_res_image_start_token_id=183,
            image_end_token_id=184,
            frame_start_token_id=185,
            frame_end_token_id=186,
            tie_word_embeddings=False,
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"mm_token_type_ids": (input_ids == IMAGE).int()}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        rows = zip(frames, generators, strict=True)
        patches = torch.cat([torch.randn(count, SIDE**2, 3 * PATCH**2, generator=g) for count, g in rows])
        blocks = torch.arange(SIDE**2).view(SIDE // 2, 2, SIDE // 2, 2).transpose(1, 2).reshape(-1, 4)
        pooling = torch.cat([blocks + frame * SIDE**2 for frame in range(len(patches))])
        grids = torch.tensor([[count, SIDE // 2, SIDE // 2] for count in frames])
        return {"pixel_values_videos": patches, "video_token_pooling": pooling, "video_grids": grids}


class Ovis2(Llava):
    """4 visual tokens an image, text between images; features are a soft choice from a visual vocabulary."""

    name = "ovis2"
    tokens_per_block = (SIDE // 2) ** 2
    config_class = "Ovis2Config"
    model_class = "Ovis2ForConditionalGeneration"
    patch = PATCH
    vision_type = "ovis2_vision"
    tower = MappingProxyType({"vocab_size": 32, "hidden_stride": 2, "num_visual_indicator_tokens": 2})

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("qwen2", **text)

    def further(self) -> dict[str, Any]:
        sizes = {"hidden_size": 64, "vocab_size": VOCABULARY}
        return {"image_token_id": IMAGE, "visual_indicator_token_ids": (186, 187), **sizes}


class NemotronHOmni(Architecture):
    """4 visual tokens an image, text between images; Mamba2, attention and MLPs in turns."""

    name = "nemotron_h_omni"
    model_class = "NemotronH_Omni_Reasoning_V3"
    tokens_per_block = (SIDE // 2) ** 2
    separated = True
    visual_token = IMAGE

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        layers = max(text["num_hidden_layers"], 9)
        mixers = {
            "layers_block_type": [("mamba", "attention", "mlp")[i % 3] for i in range(layers)],
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "head_dim": 16,
            "chunk_size": 16,
        }
        size = {"num_hidden_layers": layers}
        vision = AutoConfig.for_model(
            "radio",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2.0,
            patch_size=PATCH,
            image_size=SIZE,
            max_img_size=SIZE,
            num_cls_tokens=1,
            num_registers=1,
            video_temporal_patch_size=2,
        )
        config = transformers.NemotronH_Omni_Reasoning_V3_Config(
            vision_config=vision,
            text_config=AutoConfig.for_model("nemotron_h", **text | size, **mixers),
            audio_config=None,
            projector_hidden_size=64,
            vision_hidden_size=32,
            force_image_size=SIZE,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=188,
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        rows = zip(frames, generators, strict=True)
        patches = torch.cat([torch.randn(count * SIDE**2, 3 * PATCH**2, generator=g) for count, g in rows])
        return {"pixel_values": patches, "image_grid_hw": torch.full((sum(frames), 2), SIDE)}


class MiniCPMV4_6(Llava):
    """One visual token for 4x4 patches, 4 an image, text between images; the decoder of Qwen3.5."""

    name = "minicpmv4_6"
    tokens_per_block = 4
    config_class = "MiniCPMV4_6Config"
    model_class = "MiniCPMV4_6ForConditionalGeneration"
    patch = PATCH
    vision_type = "minicpmv4_6_vision"
    tower = MappingProxyType({"num_hidden_layers": 3, "image_size": 32, "insert_layer_id": 1})

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("qwen3_5_text", **text, **delta_nets(text), head_dim=16)

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "video_token_id": VIDEO, "insert_layer_id": 1, "image_size": 32}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        side = 8  # patches
        rows = zip(frames, generators, strict=True)
        pixels = torch.cat([torch.randn(1, 3, PATCH, count * side**2 * PATCH, generator=g) for count, g in rows], -1)
        return {"pixel_values": pixels, "target_sizes": torch.full((sum(frames), 2), side, dtype=torch.int32)}


MOLMO2, OVIS2, NEMOTRON_H_OMNI, MINICPMV4_6 = Molmo2(), Ovis2(), NemotronHOmni(), MiniCPMV4_6()

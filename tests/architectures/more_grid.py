"""Further families that take patches in a (time, height, width) grid: a video, or several images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tests.architectures.base import IMAGE, ROPE, TOWER, VIDEO, VISION_END, VISION_START, Inputs, part
from tests.architectures.grid import (
    HEIGHT,
    LATENT,
    MERGE,
    PATCH,
    WIDTH,
    Glm4v,
    Grid,
    Qwen3_5,
    Qwen3VL,
    delta_nets,
    mrope,
)
from tests.architectures.inkling2 import Inkling2
from tests.architectures.others import MiniCPMV4_6


class Images(Grid):
    """4 visual tokens an image, text between; `pixel_values` [patches, 3 * 16], `image_grid_thw` [sum of F, 3]."""

    separated = True
    temporal_patch = 1
    visual_token = IMAGE

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"mm_token_type_ids": (input_ids == IMAGE).int()} if self.typed else {}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        grid = torch.tensor([[1, HEIGHT, WIDTH]]).repeat(sum(frames), 1)
        return {"pixel_values": self.patches(self.grids(frames), generators), "image_grid_thw": grid}


class Glm4vMoe(Glm4v):
    """As GLM-4V, with experts from layer 1 on, and half of each head rotated."""

    name = "glm4v_moe"
    config_class = "Glm4vMoeConfig"
    model_class = "Glm4vMoeForConditionalGeneration"
    text_type, vision_type = "glm4v_moe_text", "glm4v_moe_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        rope = mrope(text, partial_rotary_factor=0.5, mrope_section=[2, 1, 1])
        return {**text, **experts, ROPE: rope}


class GlmOcr(Glm4v):
    """As GLM-4V, with a tower that norms queries and keys."""

    name = "glm_ocr"
    config_class = "GlmOcrConfig"
    model_class = "GlmOcrForConditionalGeneration"
    text_type, vision_type = "glm_ocr_text", "glm_ocr_vision"


class Qwen3_5Moe(Qwen3_5):
    """As Qwen3.5, with experts."""

    name = "qwen3_5_moe"
    config_class = "Qwen3_5MoeConfig"
    model_class = "Qwen3_5MoeForConditionalGeneration"
    text_type, vision_type = "qwen3_5_moe_text", "qwen3_5_moe_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        sizes = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
        return {**super().text(text), **sizes, "num_experts": 4, "num_experts_per_tok": 2}


class PaddleOcrVL(Images):
    """4 visual tokens an image, text between; three-axis positions."""

    name = "paddleocr_vl"
    config_class = "PaddleOCRVLConfig"
    model_class = "PaddleOCRVLForConditionalGeneration"
    text_type, vision_type = "paddleocr_vl_text", "paddleocr_vl_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, "head_dim": 16, ROPE: mrope(text)}

    def tokens(self) -> dict[str, Any]:
        return super().tokens() | {"tie_word_embeddings": False}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {**TOWER, "image_size": 16, "patch_size": PATCH, "spatial_merge_size": MERGE}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        inputs = super().pixels(model, frames, generators)
        return inputs | {"pixel_values": inputs["pixel_values"].unflatten(1, (3, PATCH, PATCH))}


class HunYuanVL(Images):
    """8 visual tokens an image, four of them for its start, its end and its two line ends; four-axis positions."""

    name = "hunyuan_vl"
    tokens_per_block = HEIGHT // MERGE * (WIDTH // MERGE + 1) + 2
    config_class = "HunYuanVLConfig"
    model_class = "HunYuanVLForConditionalGeneration"
    text_type, vision_type = "hunyuan_vl_text", "hunyuan_vl_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, "head_dim": 16, ROPE: mrope(text, mrope_section=[2, 2, 2, 2])}

    def tokens(self) -> dict[str, Any]:
        ids = {"image_token_id": IMAGE, "im_start_id": VISION_START, "im_end_id": VISION_END, "im_newline_id": 189}
        return ids | {"tie_word_embeddings": False}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {**TOWER, "max_image_size": 16, "patch_size": PATCH, "spatial_merge_size": MERGE}


class Qwen3OmniMoe(Qwen3VL):
    """The thinker of Qwen3-Omni: one span, experts; features are added again after layers 0 to 2."""

    name = "qwen3_omni_moe_thinker"
    typed = False
    separated = False
    enclosed = True
    config_class = "Qwen3OmniMoeThinkerConfig"
    model_class = "Qwen3OmniMoeThinkerForConditionalGeneration"
    text_type, vision_type = "qwen3_omni_moe_text", "qwen3_omni_moe_vision_encoder"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        return {**super().text(text), **experts}

    def tokens(self) -> dict[str, Any]:
        layer = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16}
        audio = {"num_mel_bins": 8, "output_dim": 64, "downsample_hidden_size": 8, **layer}
        ids = {"audio_token_id": 188, "audio_start_token_id": 186, "audio_end_token_id": 187, "user_token_id": 185}
        return super().tokens() | ids | {"audio_config": part("qwen3_omni_moe_audio_encoder", **audio)}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        return {**super().pixels(model, frames, generators), "video_second_per_grid": torch.ones(len(frames))}


class Cosmos3Omni(Qwen3VL):
    """As Qwen3-VL, whose tower and decoder it has."""

    name = "cosmos3_omni"
    config_class = "Cosmos3OmniConfig"
    model_class = "Cosmos3OmniForConditionalGeneration"


class Qwen4Exp(Qwen3_5):
    """Gated delta nets, attention to the best blocks of keys, four streams, and embeddings of trigrams in two layers.

    The layers with attention choose 16 keys in blocks of 4, by a loop over rows and queries.
    """

    name = "qwen4_exp"
    config_class = "Qwen4ExpConfig"
    model_class = "Qwen4ExpForConditionalGeneration"
    text_type, vision_type = "qwen4_exp_text", "qwen4_exp_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        indexer = {"n_heads": 2, "kv_heads": 1, "head_dim": 16, "budget": 16, "compress_ratio": 4}
        grams = {"ple_layer_ids": [1, 5], "heads_per_ngram": 2, "ngram_vocab_size_base": 64, "split_ngram_parts": 1}
        return {
            **super().text(text),
            **experts,
            **{f"indexer_{name}": size for name, size in indexer.items()},
            **grams,
            "shared_expert_intermediate_size": 32,
            "make_ngram_vocab_size_divisible_by": 8,
            "hc_lowrank": 16,
            "eos_token_id": 189,  # what an n-gram starts with
        }


class HYV4VL(Grid):
    """6 visual tokens a frame (two line ends too), in one span; latent attention to the best keys, four streams.

    Attention of its decoder is always eager: no other takes the sinks.
    """

    name = "hy_v4_vl"
    temporal_patch = 1
    tokens_per_block = HEIGHT // MERGE * (WIDTH // MERGE + 1)
    config_class = "HYV4VLConfig"
    model_class = "HYV4VLForConditionalGeneration"
    text_type, vision_type = "hy_v4_vl_text", "hy_v4_vl_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        indexer = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 16}
        # The last two layers take the keys that the fourth chose.
        indexer["indexer_types"] = ["full"] * (text["num_hidden_layers"] - 2) + ["shared"] * 2
        return {**text, **LATENT, **indexer, ROPE: mrope(text, mrope_section=[2, 1, 1])}

    def tokens(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "video_token_id": VIDEO}

    def vision(self, hidden: int) -> dict[str, Any]:
        sizes = {"max_image_size": 16, "patch_size": PATCH, "spatial_merge_size": MERGE}
        return {**TOWER, **sizes, "out_hidden_size": hidden}

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        return super().construct(text, "eager")


class MiniCPMOcr(MiniCPMV4_6):
    """As MiniCPM-V 4.6, but one visual token for 2x2 patches, 16 an image."""

    name = "minicpm_ocr"
    tokens_per_block = 16
    config_class = "MiniCPMOcrConfig"
    model_class = "MiniCPMOcrForConditionalGeneration"
    vision_type = "minicpm_ocr_vision"

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "video_token_id": VIDEO, "insert_layer_id": 1}


class MiniCPMV4_7(MiniCPMV4_6):
    """As MiniCPM-V 4.6, with three-axis positions."""

    name = "minicpmv4_7"
    config_class = "MiniCPMV4_7Config"
    model_class = "MiniCPMV4_7ForConditionalGeneration"
    vision_type = "minicpmv4_7_vision"

    def text(self, text: dict[str, Any]) -> Any:
        rope = mrope(text, mrope_interleaved=True, partial_rotary_factor=1.0)
        return part("qwen3_5_text", **text, **delta_nets(text), head_dim=16, **{ROPE: rope})

    def further(self) -> dict[str, Any]:
        marks = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
        return {**super().further(), **{mark: 184 + number for number, mark in enumerate(marks)}}

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"mm_token_type_ids": (input_ids == IMAGE).int()}


class Inkling2Loop(Inkling2):
    """As Inkling 2, the last two layers twice, the second time with what the first one gave."""

    name = "inkling2_loop"
    config_class = "Inkling2LoopConfig"
    model_class = "Inkling2LoopForConditionalGeneration"
    text_type = "inkling2_loop_text"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        layers = text["num_hidden_layers"]
        places = {"loop_layer_index_start": layers - 2, "loop_layer_index_end": layers}
        return {**super().text(text), **places, "loop_num_passes": 2, "loop_gate_rank": 8}


class Inkling(Inkling2):
    """As Inkling 2, without its attention over the layers before; `pixel_values` [tokens, 2, 2, 2, 3]."""

    name = "inkling_mm_model"
    config_class = "InklingConfig"
    model_class = "InklingForConditionalGeneration"
    text_type, vision_type = "inkling_text", "inkling_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        own = {"moe_intermediate_size": 32, "logits_mup_width_multiplier": 1.0, "log_scaling_n_floor": None}
        return {**super().text(text), **own, "unpadded_vocab_size": None}

    def tokens(self) -> dict[str, Any]:
        audio = part("inkling_audio", n_mel_bins=8, mel_vocab_size=8)
        ids = {"audio_token_id": 188, "image_bos_token_id": 186, "audio_bos_token_id": 187}
        return {**super().tokens(), **ids, "audio_config": audio}

    def vision(self, hidden: int) -> dict[str, Any]:
        # With fewer layers than it has sizes it asks scipy which of them to take.
        return {"text_hidden_size": hidden, "patch_size": 2, "hidden_size": 32, "num_hidden_layers": 3}

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        # Its bias is a part of the mask.
        model = Grid.construct(self, text, attn_implementation)
        model.model.language_model.config.use_cache = True  # which its config does not say by itself
        return model

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        rows, tokens = zip(frames, generators, strict=True), self.tokens_per_block
        patches = [torch.randn(count * tokens, 2, 2, 2, 3, generator=generator) for count, generator in rows]
        return {"pixel_values": torch.cat(patches)}


GLM4V_MOE, GLM_OCR, QWEN3_5_MOE, PADDLEOCR_VL = Glm4vMoe(), GlmOcr(), Qwen3_5Moe(), PaddleOcrVL()
HUNYUAN_VL, QWEN3_OMNI_MOE, COSMOS3_OMNI = HunYuanVL(), Qwen3OmniMoe(), Cosmos3Omni()
QWEN4_EXP, HY_V4_VL, MINICPM_OCR, MINICPMV4_7 = Qwen4Exp(), HYV4VL(), MiniCPMOcr(), MiniCPMV4_7()
INKLING2_LOOP, INKLING = Inkling2Loop(), Inkling()

"""Families that take patches in a (time, height, width) grid, as Qwen2-VL does, with towers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, ROPE, TOWER, VIDEO, VISION_END, VISION_START, Architecture, Inputs, part

PATCH, MERGE = 4, 2
HEIGHT, WIDTH = 4, 4  # of a frame, in patches
WINDOW = 12  # of layers with a sliding window, in tokens
# The sizes of a tower whose patches are merged.
MERGING_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
}


class Grid(Architecture):
    """4 visual tokens for every two frames; `pixel_values_videos` [patches, 3 * 2 * 16], `video_grid_thw` [B, 3]."""

    temporal_patch = 2
    typed = True  # does the model take `mm_token_type_ids`?
    enclosed = False  # is the video between a start and an end token, in the place of two text tokens?
    config_class: str
    text_type: str
    vision_type: str

    @property
    def frames_per_block(self) -> int:  # type: ignore[override]
        return self.temporal_patch

    tokens_per_block = HEIGHT * WIDTH // MERGE**2

    def vision(self, hidden: int) -> dict[str, Any]:
        """The vision tower's config, `hidden` being the text model's width."""
        raise NotImplementedError

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        """The decoder's config."""
        return text

    def tokens(self) -> dict[str, Any]:
        """The special tokens of the config."""
        return {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "vision_start_token_id": VISION_START,
            "vision_end_token_id": VISION_END,
        }

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        config = getattr(transformers, self.config_class)(
            text_config=part(self.text_type, **self.text(text)),
            vision_config=part(self.vision_type, **self.vision(text["hidden_size"])),
            **self.tokens(),
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def row_ids(self, frames: int, text: int, generator: torch.Generator) -> torch.Tensor:
        ids = super().row_ids(frames, text, generator)
        if self.enclosed:
            visual = (ids == self.visual_token).nonzero()
            ids[visual[0] - 1], ids[visual[-1] + 1] = VISION_START, VISION_END
        return ids

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"mm_token_type_ids": 2 * (input_ids == self.visual_token).int()} if self.typed else {}

    def grids(self, frames: Sequence[int]) -> torch.Tensor:
        """(time, height, width) of each row's video [B, 3]."""
        return torch.tensor([[count // self.temporal_patch, HEIGHT, WIDTH] for count in frames])

    def patches(self, grid: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Random patches [sum of T * H * W, 3 * temporal * 16]."""
        size = 3 * self.temporal_patch * PATCH**2
        rows = zip(grid, generators, strict=True)
        return torch.cat([torch.randn(int(thw.prod()), size, generator=generator) for thw, generator in rows])

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        grid = self.grids(frames)
        return {"pixel_values_videos": self.patches(grid, generators), "video_grid_thw": grid}


def mrope(text: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Rotary parameters with a third of the pairs, about, for each of time, height and width."""
    pairs = text["hidden_size"] // text["num_attention_heads"] // 2
    third = pairs // 3
    section = [pairs - 2 * third, third, third]
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": section, **more}


class Qwen3VL(Grid):
    """Text (the timestamp) between the blocks; features are added again after layers 0 to 2 (DeepStack)."""

    name = "qwen3_vl"
    separated = True
    config_class = "Qwen3VLConfig"
    model_class = "Qwen3VLForConditionalGeneration"
    text_type, vision_type = "qwen3_vl_text", "qwen3_vl_vision"
    deepstack = True

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, "head_dim": 16, ROPE: mrope(text, mrope_interleaved=True)}

    def vision(self, hidden: int) -> dict[str, Any]:
        vision = {
            "depth": 3,
            **MERGING_TOWER,
            "temporal_patch_size": self.temporal_patch,
            "out_hidden_size": hidden,
            "num_position_embeddings": 16,
        }
        return vision | ({"deepstack_visual_indexes": (0, 1, 2)} if self.deepstack else {})


class Qwen3VLMoe(Qwen3VL):
    """As Qwen3-VL, with experts."""

    name = "qwen3_vl_moe"
    config_class = "Qwen3VLMoeConfig"
    model_class = "Qwen3VLMoeForConditionalGeneration"
    text_type, vision_type = "qwen3_vl_moe_text", "qwen3_vl_moe_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        return {**super().text(text), **experts}


class Qwen3_5(Qwen3VL):
    """Text between the blocks; gated delta nets, and attention in every second layer."""

    name = "qwen3_5"
    config_class = "Qwen3_5Config"
    model_class = "Qwen3_5ForConditionalGeneration"
    text_type, vision_type = "qwen3_5_text", "qwen3_5_vision"
    deepstack = False

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {
            **super().text(text),
            **delta_nets(text),
            ROPE: mrope(text, mrope_interleaved=True, partial_rotary_factor=1.0),
        }


class CohereCompass(Qwen3VL):
    """As Qwen3-VL, two of three layers with a sliding window; features are added again after layers 0 to 2."""

    name = "cohere_compass"
    config_class = "CohereCompassConfig"
    model_class = "CohereCompassForConditionalGeneration"
    text_type, vision_type = "cohere_compass_text", "cohere_compass_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        kinds = sliding(text, every=3)
        rope = {kind: mrope(text, mrope_interleaved=True) for kind in set(kinds)}
        return {**text, "layer_types": kinds, "sliding_window": WINDOW, ROPE: rope}


class Glm4v(Grid):
    """Text between the blocks; the token of images stands for video too."""

    name = "glm4v"
    separated = True
    visual_token = IMAGE
    config_class = "Glm4vConfig"
    model_class = "Glm4vForConditionalGeneration"
    text_type, vision_type = "glm4v_text", "glm4v_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, ROPE: mrope(text, partial_rotary_factor=1.0)}

    def tokens(self) -> dict[str, Any]:
        return {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "image_start_token_id": VISION_START,
            "image_end_token_id": VISION_END,
            "video_start_token_id": 188,
            "video_end_token_id": 189,
        }

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            "depth": 2,
            **MERGING_TOWER,
            "image_size": 16,
            "temporal_patch_size": self.temporal_patch,
            "out_hidden_size": hidden,
        }


class Glm46V(Glm4v):
    """As GLM-4V."""

    name = "glm46v"
    config_class = "Glm46VConfig"
    model_class = "Glm46VForConditionalGeneration"


class Qwen2_5Omni(Grid):
    """The thinker of Qwen2.5-Omni: one span; three-axis positions."""

    name = "qwen2_5_omni"
    typed = False
    enclosed = True
    config_class = "Qwen2_5OmniThinkerConfig"
    model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    text_type, vision_type = "qwen2_5_omni_text", "qwen2_5_omni_vision_encoder"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, ROPE: mrope(text)}

    def tokens(self) -> dict[str, Any]:
        audio = {
            "num_mel_bins": 8,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "output_dim": 64,
        }
        return {
            "audio_config": part("qwen2_5_omni_audio_encoder", **audio),
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
            "audio_token_index": 188,
            "audio_start_token_id": 186,
            "audio_end_token_id": 187,
            "vision_start_token_id": VISION_START,
            "vision_end_token_id": VISION_END,
        }

    def vision(self, hidden: int) -> dict[str, Any]:
        return windowed_tower(hidden)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        return {**super().pixels(model, frames, generators), "video_second_per_grid": torch.ones(len(frames))}


class Exaone4_5(Grid):
    """One span; two of three layers with a sliding window."""

    name = "exaone4_5"
    typed = False
    config_class = "Exaone4_5_Config"
    model_class = "Exaone4_5_ForConditionalGeneration"
    text_type, vision_type = "exaone4", "exaone4_5_vision"
    shows_frames = False

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, "layer_types": sliding(text, every=3), "sliding_window": WINDOW}

    def vision(self, hidden: int) -> dict[str, Any]:
        return windowed_tower(hidden) | {"num_key_value_heads": 2}


class HyperCLOVAX(Grid):
    """One span."""

    name = "hyperclovax_vision_v2"
    typed = False
    config_class = "HyperCLOVAXVisionV2Config"
    model_class = "HyperCLOVAXVisionV2ForConditionalGeneration"
    text_type, vision_type = "hyperclovax", "qwen2_5_vl_vision"
    shows_frames = False

    def tokens(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": False}

    def vision(self, hidden: int) -> dict[str, Any]:
        return windowed_tower(hidden)


class Lfm3VL(Grid):
    """One span; short convolutions, and attention in layers 2 and 5, of which one has a sliding window."""

    name = "lfm3_vl"
    typed = False
    config_class = "Lfm3VlConfig"
    model_class = "Lfm3VlForConditionalGeneration"
    text_type, vision_type = "lfm3", "lfm3_vl_vision"
    shows_frames = False

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        kinds = ["conv", "full_attention", "conv", "sliding_attention"]
        layers = [kinds[i % 4] for i in range(text["num_hidden_layers"])]
        return {**text, "head_dim": 16, "layer_types": layers, "sliding_window": WINDOW, "conv_L_cache": 3}

    def tokens(self) -> dict[str, Any]:
        return super().tokens() | {"projector_hidden_size": 64, "tie_word_embeddings": False}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            **TOWER,
            "num_key_value_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": self.temporal_patch,
        }


class Cosmos3Edge(Grid):
    """4 visual tokens a frame, text between frames; three-axis positions."""

    name = "cosmos3_edge"
    separated = True
    temporal_patch = 1
    config_class = "Cosmos3EdgeConfig"
    model_class = "Cosmos3EdgeForConditionalGeneration"
    text_type, vision_type = "cosmos3_edge_text", "cosmos3_edge_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, "head_dim": 16, ROPE: mrope(text, mrope_interleaved=True)}

    def tokens(self) -> dict[str, Any]:
        return super().tokens() | {"projector_hidden_size": 64}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            **TOWER,
            "patch_size": PATCH,
            "num_patches": 16,
            "spatial_merge_size": MERGE,
        }


class MiniMaxM3VL(Grid):
    """One span; experts, part of the head rotated."""

    name = "minimax_m3_vl"
    typed = False
    config_class = "MiniMaxM3VLConfig"
    model_class = "MiniMaxM3SparseForConditionalGeneration"
    text_type, vision_type = "minimax_m3_vl_text", "minimax_m3_vl_vision"
    shows_frames = False

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        layers = text["num_hidden_layers"]
        return {
            **text,
            "head_dim": 16,
            ROPE: {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "dense_intermediate_size": 128,
            "shared_intermediate_size": 64,
            "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
            "layer_types": ["full_attention"] * layers,
        }

    def tokens(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE, "video_token_index": VIDEO, "projector_hidden_size": 64}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": PATCH,
            "temporal_patch_size": self.temporal_patch,
            "spatial_merge_size": MERGE,
        }


class Ernie4_5VL(Grid):
    """One span; experts of their own for visual tokens."""

    name = "ernie4_5_vl_moe"
    temporal_patch = 1
    config_class = "Ernie4_5_VLMoeConfig"
    model_class = "Ernie4_5_VLMoeForConditionalGeneration"
    text_type, vision_type = "ernie4_5_vl_moe_text", "ernie4_5_vl_moe_vision"

    @property
    def frames_per_block(self) -> int:  # type: ignore[override]
        return 2

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        layers = text["num_hidden_layers"]
        return {
            **text,
            "moe_intermediate_size": [64, 32],
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
            ROPE: mrope(text, mrope_section=[3, 3, 2]),
        }

    def tokens(self) -> dict[str, Any]:
        return {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "image_start_token_id": 186,
            "image_end_token_id": 187,
            "video_start_token_id": VISION_START,
            "video_end_token_id": VISION_END,
            "tie_word_embeddings": False,
        }

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        types = 2 * (input_ids == VIDEO).int()
        return {"mm_token_type_ids": types, "moe_mm_token_type_ids": types}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            "depth": 2,
            **MERGING_TOWER,
            "temporal_merge_size": 2,
        }


class KimiK25(Grid):
    """4 visual tokens a frame, text between them; multi-head latent attention and experts."""

    name = "kimi_k25"
    typed = False
    separated = True
    temporal_patch = 1
    config_class = "Kimi_K25Config"
    model_class = "Kimi_K25ForConditionalGeneration"
    text_type, vision_type = "deepseek_v3", "kimi_k25_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        return {**text, **LATENT, "num_key_value_heads": text["num_attention_heads"], "first_k_dense_replace": 1}

    def tokens(self) -> dict[str, Any]:
        return super().tokens() | {"projection_hidden_size": 32, "tie_word_embeddings": False}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            **TOWER,
            "patch_size": PATCH,
            "pos_emb_height": HEIGHT,
            "pos_emb_width": WIDTH,
        }

    def grids(self, frames: Sequence[int]) -> torch.Tensor:
        # One frame a grid: the tower averages over time, and the model then splits by what there was before.
        return torch.tensor([[1, HEIGHT, WIDTH]]).expand(sum(frames), -1)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        each = [self.patches(self.grids([count]), [g] * count) for count, g in zip(frames, generators, strict=True)]
        pixels = torch.cat(each).unflatten(1, (3, PATCH, PATCH))
        return {"pixel_values_videos": pixels, "video_grid_thw": self.grids(frames)}


class MuseGlimmer(Grid):
    """One span; three of four layers with a sliding window, rotary in those only."""

    name = "muse_glimmer"
    typed = False
    config_class = "MuseGlimmerConfig"
    model_class = "MuseGlimmerForConditionalGeneration"
    text_type, vision_type = "muse_glimmer_text", "muse_glimmer_vision"
    shows_frames = False

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        # The layers without a window must be those without rotary, as they are by default: counted from the last.
        factors = {"qk_scale_factor": 2.0, "output_multiplier": 1.0}
        return {**text, **factors, "head_dim": 16, "sliding_window": WINDOW}

    def tokens(self) -> dict[str, Any]:
        return {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "out_hidden_size": 32 * MERGE**2,
            "projector_hidden_size": 64,
        }

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            **TOWER,
            "patch_size": PATCH,
            "patch_temporal": self.temporal_patch,
            "merge_size": MERGE,
            "pos_emb_height": HEIGHT,
            "pos_emb_width": WIDTH,
        }


class MuseSpark(MuseGlimmer):
    """As Muse Glimmer, with experts and gates on the residual stream."""

    name = "muse_spark"
    config_class = "MuseSparkConfig"
    model_class = "MuseSparkForConditionalGeneration"
    text_type, vision_type = "muse_spark_text", "muse_spark_vision"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        experts = {
            "moe_intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_hidden_size": 32,
        }
        return {**super().text(text), **experts}

    def tokens(self) -> dict[str, Any]:
        audio = {
            "num_hidden_layers": 1,
            "patch_sizes": (4,),
            "hidden_sizes": (16,),
            "depths": (1,),
            "out_hidden_size": 64,
        }
        config = AutoConfig.for_model("muse_spark_audio", **audio)
        return super().tokens() | {"audio_config": config, "audio_token_id": 188}


class Dots3Note(Grid):
    """4 visual tokens a frame, text between; latent attention, in half of the layers to the best keys only."""

    name = "dots3_note"
    typed = False
    separated = True
    temporal_patch = 1
    config_class = "Dots3NoteConfig"
    model_class = "Dots3NoteForConditionalGeneration"
    text_type, vision_type = "dots3_note_text", "dots3_note_vision_encoder"

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        layers = text["num_hidden_layers"]
        return {
            **text,
            **LATENT,
            "head_dim": 16,
            "num_key_value_heads": text["num_attention_heads"],
            "layer_types": ["indexed_attention", "sliding_attention"] * (layers // 2),
            "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
            "sliding_window": WINDOW,
            "index_topk": 16,
            "index_head_dim": 16,
            "index_n_heads": 16,  # with few, many scores are zero, and ties decide
            "shared_experts_intermediate_size": 32,
        }

    def tokens(self) -> dict[str, Any]:
        audio = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = AutoConfig.for_model("dots3_note_audio_encoder", **audio, adapter_input_size=16, adapter_out_dim=64)
        return {"audio_config": config, "image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": 188}

    def vision(self, hidden: int) -> dict[str, Any]:
        return {
            **TOWER,
            "patch_size": PATCH,
            "moe_intermediate_size": 32,
            "num_local_experts": 4,
            "mlp_layer_types": ["dense", "sparse"],
            "adapter_in_dim": 32,
            "adapter_out_dim": hidden,
        }


# The sizes of multi-head latent attention with experts.
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}


def delta_nets(text: dict[str, Any]) -> dict[str, Any]:
    """Gated delta nets, and attention in every second layer."""
    return {
        "layer_types": ["full_attention" if i % 2 else "linear_attention" for i in range(text["num_hidden_layers"])],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }


def sliding(text: dict[str, Any], every: int) -> list[str]:
    """Layer types: one full attention after so many layers, the others with a sliding window."""
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(text["num_hidden_layers"])]


def windowed_tower(hidden: int) -> dict[str, Any]:
    """The config of Qwen2.5-VL's vision tower."""
    return {
        "depth": 2,
        **MERGING_TOWER,
        "temporal_patch_size": 2,
        "window_size": 4 * PATCH,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [1],
    }


QWEN3_VL, QWEN3_VL_MOE, QWEN3_5, COHERE_COMPASS = Qwen3VL(), Qwen3VLMoe(), Qwen3_5(), CohereCompass()
GLM4V, GLM46V, QWEN2_5_OMNI, EXAONE4_5, HYPERCLOVAX = Glm4v(), Glm46V(), Qwen2_5Omni(), Exaone4_5(), HyperCLOVAX()
LFM3_VL, COSMOS3_EDGE, MINIMAX_M3_VL, ERNIE4_5_VL = Lfm3VL(), Cosmos3Edge(), MiniMaxM3VL(), Ernie4_5VL()
KIMI_K25, MUSE_GLIMMER, MUSE_SPARK, DOTS3_NOTE = KimiK25(), MuseGlimmer(), MuseSpark(), Dots3Note()

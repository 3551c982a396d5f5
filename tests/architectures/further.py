"""Families whose decoders do something of their own with positions, keys or residual streams."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, TOWER, VOCABULARY, Architecture, Inputs
from tests.architectures.gemma import Gemma4
from tests.architectures.grid import WINDOW, sliding
from tests.architectures.llava import PATCH, SIZE, Llava, LlavaNext, Mistral3


class Llama4(Llava):
    """4 visual tokens an image. Rotation by complex numbers, in chunks; each third layer has no positions."""

    name = "llama4"
    config_class = "Llama4Config"
    model_class = "Llama4ForConditionalGeneration"
    patch = PATCH
    tokens_per_block = (SIZE // PATCH // 2) ** 2

    def vision(self) -> Any:
        sizes = {"image_size": SIZE, "patch_size": PATCH, "vision_output_dim": 32}
        projector = {"projector_input_dim": 32, "projector_output_dim": 32, "intermediate_size": 128}
        return AutoConfig.for_model("llama4_vision_model", **TOWER | sizes | projector)

    def text(self, text: dict[str, Any]) -> Any:
        experts = {"num_local_experts": 4, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 128}
        scales = {"no_rope_layer_interval": 3, "attention_chunk_size": 24}
        return AutoConfig.for_model("llama4_text", **text, head_dim=16, **experts, **scales)

    def further(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE}

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        # transformers 5.24 asks the language model's output for an attribute that it lacks: every call would fail.
        output = transformers.modeling_outputs.MoeCausalLMOutputWithPast
        output.image_outputs = getattr(output, "image_outputs", None)
        return super().construct(text, attn_implementation)


class MistralLarge4(Mistral3):
    """As Mistral 3. Latent attention to the best keys only, which some layers take over from the layer before.

    The scales of a query grow with its position.
    """

    name = "mistral_large4"
    config_class = "MistralLarge4Config"
    model_class = "MistralLarge4ForConditionalGeneration"

    def text(self, text: dict[str, Any]) -> Any:
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        index = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 16}
        sizes = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
        heads = {"num_key_value_heads": text["num_attention_heads"]}
        return AutoConfig.for_model("mistral_large4_text", **text | heads, **experts, **index, **sizes)


class Granite4Vision(LlavaNext):
    """As LLaVA-NeXT, 10 tokens an image. Features are added to the hidden states of zeros, before layers 0, 1 and 2."""

    name = "granite4_vision"
    tokens_per_block = 10
    config_class = "Granite4VisionConfig"
    model_class = "Granite4VisionForConditionalGeneration"
    patch = PATCH
    tower = MappingProxyType({"hidden_size": 64})

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("granite4_vision_text", **text, attention_multiplier=0.25)

    def further(self) -> dict[str, Any]:
        layers = {"deepstack_layer_map": [[-2, 0], [-1, 1]], "spatial_target_layers": [2], "downsample_rate": "1/2"}
        return {"image_token_index": IMAGE, "image_grid_pinpoints": [[SIZE, SIZE]], **layers}


class Gemma3n(Llava):
    """4 visual tokens an image. Four streams of hidden states [4, B, S, C]; the last two layers share keys."""

    name = "gemma3n"
    config_class = "Gemma3nConfig"
    model_class = "Gemma3nForConditionalGeneration"
    vision_type = "siglip_vision_model"
    tower = MappingProxyType({"vision_use_head": False})

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        config = transformers.Gemma3nConfig(text_config=self.text(text), tie_word_embeddings=False, **self.further())
        # Its own tower needs timm, and its config takes no other. SigLIP's gives as many numbers an image.
        vision = self.vision()
        vision.vocab_size, vision.vocab_offset, vision.rms_norm_eps = 4, text["vocab_size"], 1e-6
        vars(config)["vision_config"] = vision
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def text(self, text: dict[str, Any]) -> Any:
        layers = {"num_hidden_layers": max(text["num_hidden_layers"], 8)}
        kinds = {"layer_types": sliding(layers, every=3), "sliding_window": WINDOW, "num_kv_shared_layers": 2}
        inputs = {"vocab_size_per_layer_input": text["vocab_size"], "hidden_size_per_layer_input": 8}
        sparse = {"activation_sparsity_pattern": [0.5, 0.0] * (layers["num_hidden_layers"] // 2)}
        return AutoConfig.for_model(
            "gemma3n_text", **text | layers, head_dim=16, laurel_rank=8, **kinds, **inputs, **sparse
        )

    def further(self) -> dict[str, Any]:
        audio = {"vocab_size": 4, "vocab_offset": VOCABULARY + 4, "hidden_size": 32, "conf_num_attention_heads": 2}
        return {
            "audio_config": {**audio, "conf_num_hidden_layers": 1, "sscp_conv_channel_size": (4, 4)},
            "image_token_id": IMAGE,
            "audio_token_id": 188,
            "vision_soft_tokens_per_image": self.tokens_per_block,
        }


class Step3p7(Llava):
    """1 visual token an image: patches halved twice. Layers with a window have more heads; attention is gated."""

    name = "step3p7"
    tokens_per_block = (SIZE // PATCH // 4) ** 2
    config_class = "Step3p7Config"
    model_class = "Step3p7ForConditionalGeneration"
    patch = PATCH

    def vision(self) -> Any:
        return {**TOWER, "image_size": SIZE, "patch_size": PATCH, "mlp_ratio": 2.0, "max_position_embeddings": 16}

    def text(self, text: dict[str, Any]) -> Any:
        kinds = {"layer_types": sliding(text, every=3), "sliding_window": WINDOW, "num_sliding_attention_heads": 8}
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "share_expert_dim": 64}
        return {**text, "head_dim": 16, **kinds, **experts}

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE}


class Phi4Multimodal(Architecture):
    """13 visual tokens an image: as one tile and as a whole, lines with a token at their ends, and one between them."""

    name = "phi4_multimodal"
    model_class = "Phi4MultimodalForCausalLM"
    tokens_per_block = 2 * (2 * 3) + 1
    separated = True
    visual_token = IMAGE

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        vision = {**TOWER, "image_size": SIZE, "patch_size": PATCH, "crop_size": SIZE, "image_token_id": IMAGE}
        audio = {"hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2}
        channels = {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32}
        config = transformers.Phi4MultimodalConfig(
            **text, vision_config=vision, audio_config={**audio, **channels, "audio_token_id": 188, "feature_layer": -1}
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        rows = zip(frames, generators, strict=True)
        images = torch.cat([torch.randn(count, 2, 3, SIZE, SIZE, generator=generator) for count, generator in rows])
        side = SIZE // PATCH
        mask = torch.ones(len(images), 2, side, side)
        # Where the mask hides nothing it is left out, but never while compiling, and without one the tower is causal.
        mask[..., -1, -1] = 0
        sizes = torch.full((len(images), 2), SIZE)
        return {"image_pixel_values": images, "image_sizes": sizes, "image_attention_mask": mask}


class Gemma4Unified(Gemma4):
    """As Gemma 4, without a tower: each visual token is a projected patch."""

    name = "gemma4_unified"
    config_class = "Gemma4UnifiedConfig"
    model_class = "Gemma4UnifiedForConditionalGeneration"

    def text(self, text: dict[str, Any]) -> Any:
        kinds = {"layer_types": sliding(text, every=4), "sliding_window": WINDOW}
        return AutoConfig.for_model("gemma4_unified_text", **text, head_dim=16, global_head_dim=16, **kinds)

    def vision(self) -> Any:
        sizes = {"patch_size": PATCH, "pooling_kernel_size": 2, "mm_embed_dim": 32, "output_proj_dims": 32}
        return {**sizes, "mm_posemb_size": 16}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        side = SIZE // PATCH // 2
        rows = zip(frames, generators, strict=True)
        patches = torch.cat([torch.rand(count, side**2, 3 * (2 * PATCH) ** 2, generator=g) for count, g in rows])
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)
        return {
            "pixel_values_videos": patches,
            "video_position_ids": places.expand(len(patches), -1, -1),
            "num_frames_per_video": torch.tensor(frames),
        }


class DeepseekOcr2(Llava):
    """5 visual tokens an image: learned queries behind a tower of windows and a decoder of its own, and a separator."""

    name = "deepseek_ocr2"
    queries = 4
    tokens_per_block = queries + 1
    config_class = "DeepseekOcr2Config"
    model_class = "DeepseekOcr2ForConditionalGeneration"

    def vision(self) -> Any:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64}
        places = {"image_size": SIZE, "patch_size": PATCH, "window_size": 2, "global_attn_indexes": [1]}
        sam = {**sizes, **places, "output_channels": 8, "downsample_channels": [16, 32]}
        return {"sam_config": sam, "encoder_config": {**TOWER, "num_key_value_heads": 2, "vocab_size": 8}}

    def text(self, text: dict[str, Any]) -> Any:
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1}
        kinds = {"mlp_layer_types": ["dense"] + ["sparse"] * (text["num_hidden_layers"] - 1)}
        heads = {"num_key_value_heads": text["num_attention_heads"]}
        return {**text, **heads, **experts, **kinds}

    def further(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE}

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        model = super().construct(text, attn_implementation)
        # The class fixes the number of queries, to 144 for images of up to as many patches.
        model.model.vision_tower.query_768_resolution = nn.Embedding(self.queries, TOWER["hidden_size"])
        return model


class UnlimitedOcr(DeepseekOcr2):
    """3 visual tokens an image: a patch, a line end and a separator. A window that moves over the answer only."""

    name = "unlimited_ocr"
    tokens_per_block = 3
    config_class = "UnlimitedOcrConfig"
    model_class = "UnlimitedOcrForConditionalGeneration"

    def vision(self) -> Any:
        return super().vision() | {"encoder_config": {**TOWER, "image_size": PATCH, "patch_size": PATCH}}

    def text(self, text: dict[str, Any]) -> Any:
        return super().text(text) | {"sliding_window": WINDOW}

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        return Llava.construct(self, text, attn_implementation)


LLAMA4, MISTRAL_LARGE4, GRANITE4_VISION = Llama4(), MistralLarge4(), Granite4Vision()
GEMMA3N, STEP3P7, PHI4_MULTIMODAL, GEMMA4_UNIFIED = Gemma3n(), Step3p7(), Phi4Multimodal(), Gemma4Unified()
DEEPSEEK_OCR2, UNLIMITED_OCR = DeepseekOcr2(), UnlimitedOcr()

"""Families of one image a row, which a few learned queries read; most of them `generate` by their language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from tests.architectures.base import IMAGE, TOWER, Architecture, Inputs
from tests.architectures.instructblipvideo import InstructBlipVideo
from tests.architectures.llava import PATCH, SIZE

QUERIES = 32


class InstructBlip(InstructBlipVideo):
    """32 visual tokens a row; `pixel_values` [B, 3, 16, 16]."""

    name = "instructblip"
    config_class = "InstructBlipConfig"
    model_class = "InstructBlipForConditionalGeneration"
    queries = QUERIES
    tokens_per_block = 0
    extra_tokens = QUERIES
    visual_token = IMAGE

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        inputs = super().pixels(model, [1] * len(frames), generators)
        return {**inputs, "pixel_values": inputs["pixel_values"][:, 0]}


class Blip2(InstructBlip):
    """As InstructBLIP, but that the Q-Former does not see the question."""

    name = "blip-2"
    config_class = "Blip2Config"
    model_class = "Blip2ForConditionalGeneration"

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        return {"pixel_values": super().pixels(model, frames, generators)["pixel_values"]}


class Kosmos2(Architecture):
    """32 visual tokens a row, where `image_embeds_position_mask` [B, S] says; positions are added to embeddings."""

    name = "kosmos-2"
    config_class = "Kosmos2Config"
    model_class = "Kosmos2ForConditionalGeneration"
    tokens_per_block = 0
    extra_tokens = QUERIES
    visual_token = IMAGE

    def vision(self) -> dict[str, Any]:
        return {**TOWER, "image_size": SIZE, "patch_size": PATCH}

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        names = {
            "hidden_size": "embed_dim",
            "num_hidden_layers": "layers",
            "num_attention_heads": "attention_heads",
            "intermediate_size": "ffn_dim",
        }
        sizes = {names.get(name, name): value for name, value in text.items() if name != "num_key_value_heads"}
        config = getattr(transformers, self.config_class)(
            text_config=sizes,
            vision_config=self.vision(),
            latent_query_num=QUERIES,
            tie_word_embeddings=False,
            image_token_id=IMAGE,  # for the tests: the model is told where its images are
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def build(self, **options: Any) -> nn.Module:
        model = super().build(**options)
        model.text_model.generation_config = model.generation_config
        with torch.no_grad():  # features have length one: with other weights as random, they would hardly matter
            model.image_to_text_projection.dense.weight *= 30
        return model

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        return {"image_embeds_position_mask": (input_ids == IMAGE).long()}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        return {"pixel_values": torch.stack([torch.randn(3, SIZE, SIZE, generator=each) for each in generators])}


class Kosmos2_5(Kosmos2):
    """As Kosmos-2, with an embedding of its own for visual places; patches with their line and column."""

    name = "kosmos-2.5"
    config_class = "Kosmos2_5Config"
    model_class = "Kosmos2_5ForConditionalGeneration"

    def vision(self) -> dict[str, Any]:
        return {**TOWER, "head_dim": 16, "patch_embed_hidden_size": 3 * PATCH**2, "max_num_patches": 32}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        side = SIZE // PATCH
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)) + 1.0
        patches = [torch.randn(side**2, 3 * PATCH**2, generator=each) for each in generators]
        return {"flattened_patches": torch.stack([torch.cat([places, patch], 1) for patch in patches])}


INSTRUCTBLIP, BLIP2, KOSMOS2, KOSMOS2_5 = InstructBlip(), Blip2(), Kosmos2(), Kosmos2_5()

"""Families that read an image as words: a tower gives codes, whose embeddings are the decoder's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, Inputs
from tests.architectures.llava import SIZE, Llava

CODES = range(100, 164)  # the ids of the codes
DOWN = 8  # by how much the towers shrink a side
CHANNELS = 32  # the least that their norms take
CONVOLUTIONS = {"base_channels": CHANNELS, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1}


class Chameleon(Llava):
    """4 visual tokens an image; queries and keys are normalised before their rotation; the model has no parts."""

    name = "chameleon"
    config_class = "ChameleonConfig"
    model_class = "ChameleonForConditionalGeneration"
    tokens_per_block = (SIZE // DOWN) ** 2

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        # The names spell the codes with letters for digits.
        digits = str.maketrans("0123456789", "ABCDEFGHIJ")
        words = {f"IMGIMG{str(code).translate(digits)}Z": CODES[code] for code in range(len(CODES))}
        config = transformers.ChameleonConfig(
            **text,
            vq_config={**CONVOLUTIONS, "num_embeddings": len(CODES), "embed_dim": 8, "latent_channels": CHANNELS},
            vocabulary_map={"<image>": IMAGE, **words},
        )
        model = transformers.ChameleonForConditionalGeneration
        return model._from_config(config, attn_implementation=attn_implementation)


class Emu3(Llava):
    """6 visual tokens an image, the last of each line its end; `image_sizes` [sum of F, 2]."""

    name = "emu3"
    config_class = "Emu3Config"
    model_class = "Emu3ForConditionalGeneration"
    tokens_per_block = SIZE // DOWN * (SIZE // DOWN + 1)

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        words = {f"<|visual token {code:06}|>": CODES[code] for code in range(len(CODES))}
        config = transformers.Emu3Config(
            text_config={**text, "bos_token_id": 1, "eos_token_id": 2},
            vq_config={
                **CONVOLUTIONS,
                "codebook_size": len(CODES),
                "hidden_size": CHANNELS,
                "attn_resolutions": [],
                # Each of its steps makes random activations smaller, until all images have one code.
                "temporal_downsample_factor": 1,
            },
            vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 180, **words},
        )
        model = transformers.Emu3ForConditionalGeneration
        return model._from_config(config, attn_implementation=attn_implementation)

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        images = self.images(frames, generators)
        return {"pixel_values": images, "image_sizes": torch.full((len(images), 2), SIZE)}


class Apertus1p5(Emu3):
    """4 visual tokens an image; `image_sizes` [sum of F, 2]. Of audio it makes words too."""

    name = "apertus1p5"
    config_class = "Apertus1p5Config"
    model_class = "Apertus1p5ForConditionalGeneration"
    tokens_per_block = (SIZE // DOWN) ** 2

    def construct(self, text: dict[str, Any], attn_implementation: Any) -> nn.Module:
        # The towers have no attention of other kinds.
        kinds = {"text_config": attn_implementation, "vision_config": "eager", "audio_config": "eager"}
        return Llava.construct(self, text, kinds)

    def vision(self) -> dict[str, Any]:
        codes = {"codebook_size": len(CODES), "embed_dim": 8, "latent_channels": CHANNELS, "attn_resolutions": []}
        return {**CONVOLUTIONS, **codes}

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("apertus1p5_text", **text)

    def further(self) -> dict[str, Any]:
        sizes = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 8, "num_lstm_layers": 1}
        return {
            "audio_config": AutoConfig.for_model("wavtokenizer_encoder", **sizes),
            "image_token_id": IMAGE,
            "audio_token_id": 188,
            "image_token_offset": CODES.start,
            "audio_token_offset": CODES.stop,
        }


CHAMELEON, EMU3, APERTUS1P5 = Chameleon(), Emu3(), Apertus1p5()

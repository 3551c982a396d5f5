"""InstructBLIP for video: a Q-Former reads each frame with the question in view; a decoder with learned positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from tests.architectures.base import TEXT, VIDEO, VOCABULARY, Architecture, Inputs, part
from tests.architectures.llava import PATCH, SIZE

QUERIES = 4  # of the Q-Former, for a frame
QUESTION = 6  # tokens of the Q-Former


class InstructBlipVideo(Architecture):
    """4 visual tokens a frame, in one span; `pixel_values` [B, F, 3, 16, 16], `qformer_input_ids` [B, 6] and a mask.

    `generate` is the language model's own, with embeddings and ids. OPT has as many key as query heads.
    """

    name = "instructblipvideo"
    config_class = "InstructBlipVideoConfig"
    model_class = "InstructBlipVideoForConditionalGeneration"
    ragged = False
    queries = QUERIES
    tokens_per_block = QUERIES
    shows_frames = False

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        opt = {name: value for name, value in text.items() if name not in ("intermediate_size", "num_key_value_heads")}
        sizes = {"ffn_dim": text["intermediate_size"], "word_embed_proj_dim": text["hidden_size"]}
        config = getattr(transformers, self.config_class)(
            vision_config={**tower, "image_size": SIZE, "patch_size": PATCH},
            qformer_config={**tower, "vocab_size": VOCABULARY},
            text_config=part("opt", **opt, **sizes),
            num_query_tokens=self.queries,
            **{"video_token_index" if self.visual_token == VIDEO else "image_token_index": self.visual_token},
            tie_word_embeddings=False,
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def build(self, **options: Any) -> nn.Module:
        model = super().build(**options)
        model.language_model.generation_config = model.generation_config
        return model

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        videos = [torch.randn(count, 3, SIZE, SIZE, generator=g) for count, g in zip(frames, generators, strict=True)]
        questions = torch.stack([torch.randint(TEXT.start, TEXT.stop, (QUESTION,), generator=g) for g in generators])
        return {
            "pixel_values": torch.stack(videos),
            "qformer_input_ids": questions,
            "qformer_attention_mask": torch.ones_like(questions),
        }


INSTRUCTBLIPVIDEO = InstructBlipVideo()

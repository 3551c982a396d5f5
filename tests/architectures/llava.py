"""LLaVA and its descendants: a CLIP tower, one projection, a Llama-like decoder; frames are images or one video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from tests.architectures.base import IMAGE, TOWER, VIDEO, Architecture, Inputs

SIZE, PATCH = 16, 4  # of a picture and of its patches, in pixels


class Llava(Architecture):
    """4 visual tokens an image, text between images; `pixel_values` [sum of F, 3, 16, 16]."""

    name = "llava"
    patch = 2 * PATCH
    tokens_per_block = (SIZE // patch) ** 2
    separated = True
    visual_token = IMAGE
    config_class = "LlavaConfig"
    model_class = "LlavaForConditionalGeneration"
    vision_type = "clip_vision_model"
    tower: Mapping[str, Any] = MappingProxyType({})  # what the config of the vision tower takes beside its sizes

    def vision(self) -> Any:
        """The config of the vision tower."""
        sizes = {**TOWER, "image_size": SIZE, "patch_size": self.patch}
        return AutoConfig.for_model(self.vision_type, **sizes | self.tower)

    def text(self, text: dict[str, Any]) -> Any:
        """The config of the decoder."""
        return AutoConfig.for_model("llama", **text)

    def further(self) -> dict[str, Any]:
        """What else the config takes."""
        return {"image_token_index": IMAGE, "image_seq_length": self.tokens_per_block}

    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        config = getattr(transformers, self.config_class)(
            vision_config=self.vision(), text_config=self.text(text), tie_word_embeddings=False, **self.further()
        )
        model = getattr(transformers, self.model_class)
        return model._from_config(config, attn_implementation=attn_implementation)

    def images(self, frames: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Random pictures [sum of F, 3, 16, 16]."""
        rows = zip(frames, generators, strict=True)
        return torch.cat([torch.randn(count, 3, SIZE, SIZE, generator=generator) for count, generator in rows])

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        return {"pixel_values": self.images(frames, generators)}


class LlavaNext(Llava):
    """As LLaVA, each image whole and as one tile, 10 tokens; `pixel_values` [sum of F, 2, 3, 16, 16]."""

    name = "llava_next"
    tokens_per_block = 2 * Llava.tokens_per_block + SIZE // Llava.patch  # the whole, and the tile with a newline a line
    config_class = "LlavaNextConfig"
    model_class = "LlavaNextForConditionalGeneration"

    def further(self) -> dict[str, Any]:
        return {**super().further(), "image_grid_pinpoints": [[SIZE, SIZE]]}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        images = self.images(frames, generators)
        sizes = torch.full((len(images), 2), SIZE)
        return {"pixel_values": torch.stack([images, images.flip(-1)], 1), "image_sizes": sizes}


class LlavaNextVideo(Llava):
    """4 visual tokens a frame, in one span; `pixel_values_videos` [B, F, 3, 16, 16]."""

    name = "llava_next_video"
    ragged = False
    separated = False
    patch = PATCH  # of which the model pools 2x2
    visual_token = VIDEO
    config_class = "LlavaNextVideoConfig"
    model_class = "LlavaNextVideoForConditionalGeneration"
    shows_frames = False

    def further(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
            "image_grid_pinpoints": [[SIZE, SIZE]],
        }

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        return {"pixel_values_videos": self.images(frames, generators).unflatten(0, (len(frames), -1))}


class VideoLlava(LlavaNextVideo):
    """5 visual tokens a frame (the class token too), in one span; `pixel_values_videos` [B, F, 3, 16, 16]."""

    name = "video_llava"
    patch = Llava.patch
    tokens_per_block = Llava.tokens_per_block + 1
    config_class = "VideoLlavaConfig"
    model_class = "VideoLlavaForConditionalGeneration"

    def further(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE, "video_token_index": VIDEO}


class Mistral3(Llava):
    """4 visual tokens an image: a Pixtral tower, patches merged 2x2."""

    name = "mistral3"
    config_class = "Mistral3Config"
    model_class = "Mistral3ForConditionalGeneration"
    patch = PATCH
    vision_type = "pixtral"
    tower = MappingProxyType({"head_dim": 16})

    def text(self, text: dict[str, Any]) -> Any:
        return AutoConfig.for_model("mistral", sliding_window=None, head_dim=16, **text)

    def further(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE, "spatial_merge_size": 2}

    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        images = self.images(frames, generators)
        return {"pixel_values": images, "image_sizes": torch.full((len(images), 2), SIZE)}


class Aria(Llava):
    """4 visual tokens an image, from learned queries; a decoder of experts."""

    name = "aria"
    tokens_per_block = 4
    config_class = "AriaConfig"
    model_class = "AriaForConditionalGeneration"
    patch = PATCH
    vision_type = "idefics3_vision"

    def text(self, text: dict[str, Any]) -> Any:
        experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
        return AutoConfig.for_model("aria_text", **text, **experts)

    def further(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "projector_patch_to_query_dict": {(SIZE // PATCH) ** 2: self.tokens_per_block},
        }


class PerceptionLM(LlavaNextVideo):
    """4 visual tokens a frame, in one span; `pixel_values_videos` [B, F, 3, 16, 16]."""

    name = "perception_lm"
    shows_frames = True
    config_class = "PerceptionLMConfig"
    model_class = "PerceptionLMForConditionalGeneration"

    def vision(self) -> Any:
        # Its own tower needs timm, which needs torchvision; CLIP's gives the same: a class token, then patches.
        config = super().vision()
        config.model_args = {"embed_dim": config.hidden_size}
        return config

    def further(self) -> dict[str, Any]:
        return {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "projector_pooling_ratio": 2,
            "vision_use_cls_token": True,
        }


LLAVA, LLAVA_NEXT, LLAVA_NEXT_VIDEO, VIDEO_LLAVA = Llava(), LlavaNext(), LlavaNextVideo(), VideoLlava()
MISTRAL3, ARIA, PERCEPTION_LM = Mistral3(), Aria(), PerceptionLM()

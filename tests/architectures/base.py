"""What the architectures share: the text part of a config, the weights, and rows of token ids."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

Inputs = dict[str, torch.Tensor]

VOCABULARY = 200
PAD = 0
TEXT = range(10, 180)  # ids of ordinary text tokens
IMAGE, VIDEO, VISION_START, VISION_END = 190, 191, 192, 193
# What configs call the parameters of rotary embeddings, and called them before transformers 5.
ROPE = "rope_parameters" if transformers.__version__ >= "5" else "rope_scaling"
# The sizes of most vision towers.
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def part(model_type: str, **sizes: Any) -> Any:
    """The config of a part of a model; before transformers 5 some have none that goes by a name, and take a dict."""
    return transformers.AutoConfig.for_model(model_type, **sizes) if transformers.__version__ >= "5" else sizes


class Architecture(ABC):
    """One model family: how to build a tiny model of it, and the inputs that its `forward` takes."""

    name: str
    model_class: str  # its name in transformers
    ragged = True  # may the rows of a batch have different numbers of frames?
    frames_per_block = 1  # frames that become one block of visual tokens
    tokens_per_block: int
    shows_frames = True  # does the decoder's graph show which visual tokens belong to one block?
    extra_tokens = 0  # visual tokens of a row beside its blocks
    separated = False  # is there a text token between the blocks (as timestamps are), or are they one span?
    visual_token = VIDEO
    generated_type = 0  # of generated tokens, where the model takes types of tokens

    def build(
        self,
        *,
        seed: int = 0,
        layers: int = 6,
        hidden: int = 64,
        heads: int = 4,
        kv_heads: int = 2,
        attn_implementation: str = "sdpa",
    ) -> nn.Module:
        """A model in float32 and `eval` mode, after one eager forward call (a cold one breaks graphs more).

        The same arguments give the same weights, whatever `attn_implementation` is.
        """
        text = {
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 1024,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": PAD,
            "tie_word_embeddings": False,
        }
        model = self.construct(text, attn_implementation).float().eval()
        randomize(model, seed)
        # No end token, so that generated sequences are as long as the test asked for, and text only.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        model.generation_config.suppress_tokens = [PAD, IMAGE, VIDEO, VISION_START, VISION_END]
        with torch.no_grad():
            model(**self.inputs(model))
        return model

    @abstractmethod
    def construct(self, text: dict[str, Any], attn_implementation: str) -> nn.Module:
        """The model with the given text config, weights as the library draws them."""

    def inputs(
        self,
        model: nn.Module,
        frames: int | Sequence[int] = 8,
        text: int | Sequence[int] = 12,
        *,
        batch: int = 1,
        pad: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Inputs:
        """The keyword arguments of `model(...)` for a batch of B rows, B from the longest argument.

        A row is padding, text, the visual tokens of `frames` frames (between text tokens where the family
        separates frames) and text again. It holds `text` text tokens besides separators, less the first
        `pad[i]` of them, which are padding instead; rows that are still shorter than the longest get more
        padding. Row i depends on `seed + i` and its own arguments only, so a row of a batch can be had alone.

        Returns: `input_ids` and `attention_mask` [B, S], and what the family's vision tower wants.
        """
        batch = max([batch, *(len(value) for value in (frames, text, pad) if isinstance(value, Sequence))])
        frame_counts, text_counts = spread(frames, batch), spread(text, batch)
        pads = spread(pad or 0, batch)
        if not self.ragged and len(set(frame_counts)) > 1:
            raise ValueError(f"{self.name} takes rows of equally many frames, not {frame_counts}")
        generators = [torch.Generator().manual_seed(seed + row) for row in range(batch)]
        rows = [
            self.row_ids(frame_count, text_count - padding, generator)
            for frame_count, text_count, padding, generator in zip(
                frame_counts, text_counts, pads, generators, strict=True
            )
        ]
        # Equal text lengths keep `pad[i]` positions of padding in a row even where every row is padded.
        length = max(len(row) + padding for row, padding in zip(rows, pads, strict=True))
        input_ids = torch.full((batch, length), PAD)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(rows):
            input_ids[row, length - len(ids) :] = ids
            attention_mask[row, length - len(ids) :] = 1
        pixels = self.pixels(model, frame_counts, generators)
        # Older versions of transformers find out for themselves what newer ones are told.
        taken = inspect.signature(model.forward).parameters
        extras = {name: value for name, value in self.extras(input_ids).items() if name in taken}
        return {"input_ids": input_ids, "attention_mask": attention_mask, **extras, **pixels}

    def visual_count(self, frames: int) -> int:
        """The number of visual tokens of a row."""
        return frames // self.frames_per_block * self.tokens_per_block + self.extra_tokens

    def row_ids(self, frames: int, text: int, generator: torch.Generator) -> torch.Tensor:
        """The ids of one row without its padding [S_row]: a third of the text comes before the video."""
        words = torch.randint(TEXT.start, TEXT.stop, (text,), generator=generator)
        blocks = frames // self.frames_per_block
        before, after = words[: text // 3], words[text // 3 :]
        if not self.separated:
            visual = torch.full((self.visual_count(frames),), self.visual_token)
        else:
            block = torch.full((self.tokens_per_block,), self.visual_token)
            separators = torch.randint(TEXT.start, TEXT.stop, (blocks - 1, 1), generator=generator)
            visual = torch.cat([block, *(part for word in separators for part in (word, block))])
        return torch.cat([before, visual, after])

    def extras(self, input_ids: torch.Tensor) -> Inputs:
        """Further inputs that follow from the ids."""
        return {}

    @abstractmethod
    def pixels(self, model: nn.Module, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Inputs:
        """The vision tower's inputs for rows of `frames[i]` frames, row i drawn from `generators[i]`."""


def spread(value: int | Sequence[int], batch: int) -> list[int]:
    """One value for each row."""
    return [value] * batch if isinstance(value, int) else list(value)


def randomize(model: nn.Module, seed: int) -> None:
    """Draws every parameter anew, so that activations keep their size from layer to layer.

    Matrices get a variance of gain²/fan_in. The query and key gain spreads the attention scores over a few
    units (neither uniform nor one-hot), the gain of the language head spreads the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if ("norm" in name.lower() or ".ln." in name) and name.endswith("weight"):
                # Around one, or around zero where the norm adds one to its weight.
                parameter.copy_(parameter.mean().round() + 0.1 * noise)
            elif parameter.dim() < 2:
                parameter.copy_(0.1 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 4.0 if "lm_head" in name else 1.0
                size = parameter[0].numel()
                # Experts' matrices are stacked, and not all have their inputs in the last dimension.
                fan_in = math.sqrt(size) if ".experts." in name and parameter.dim() == 3 else size
                parameter.copy_(gain * noise / math.sqrt(fan_in))


def visual_mask(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Where the visual tokens are, read from the ids: bool [B, S]."""
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for config in (model.config, getattr(model.config, "vision_config", None)):
        for name in ("image_token_id", "video_token_id"):
            if (token := getattr(config, name, None)) is not None:
                mask |= inputs["input_ids"] == token
    return mask


def text_only(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Ids of ordinary text tokens [B, length], as a second user turn without a video has."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TEXT.start, TEXT.stop, (batch, length), generator=generator)

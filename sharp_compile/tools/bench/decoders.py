"""The language models of published video models, in shape, with random weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from . import BenchError
from .vision import FRAME, TOKENS_OF_FRAME, Tower, TowerShape

_TEXT = 32
"""Text tokens of a prompt, half of them in front of the video."""


@dataclass(frozen=True)
class Shape:
    """A decoder: the kind of configuration in transformers, and its sizes."""

    kind: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    vocab_size: int = 152_064

    def scaled(self, width: int) -> Shape:
        """Return the same proportions with another hidden size, as far as whole heads allow.

        Raises:
            BenchError: where no whole number of heads fits.
        """
        heads, rest = divmod(width, self.head_dim)
        if heads == 0 or rest:
            raise BenchError(f"--width {width}: must be a multiple of the width of a head, {self.head_dim}")
        groups = self.num_attention_heads // self.num_key_value_heads
        # The number of query heads of a key head that is nearest to the model's and divides the heads.
        groups = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - groups))
        factor = width / self.hidden_size
        return replace(
            self,
            hidden_size=width,
            intermediate_size=round(self.intermediate_size * factor),
            num_attention_heads=heads,
            num_key_value_heads=heads // groups,
            vocab_size=round(self.vocab_size * factor),
        )


_QWEN2_0_5B = Shape("qwen2", 896, 4864, 24, 14, 2, 64, 151_936)
_QWEN2_7B = Shape("qwen2", 3584, 18944, 28, 28, 4)
_QWEN2_72B = Shape("qwen2", 8192, 29568, 80, 64, 8)

SHAPES = {
    "qwen2-0.5b": _QWEN2_0_5B,
    "qwen2-1.5b": Shape("qwen2", 1536, 8960, 28, 12, 2, 128, 151_936),
    "qwen2-7b": _QWEN2_7B,
    "qwen2.5-3b": Shape("qwen2", 2048, 11008, 36, 16, 2, 128, 151_936),
    "qwen2.5-32b": Shape("qwen2", 5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _QWEN2_72B,
    "qwen3-8b": Shape("qwen3", 4096, 12288, 36, 32, 8, 128, 151_936),
    "llama-3-8b": Shape("llama", 4096, 14336, 32, 32, 8, 128, 128_256),
    "llava-onevision-0.5b": _QWEN2_0_5B,
    "llava-onevision-7b": _QWEN2_7B,
    "llava-onevision-72b": _QWEN2_72B,
}
"""Decoders by the names of models that have them. LLaVA-OneVision's are Qwen2's."""


@dataclass(frozen=True)
class Setup:
    """What is measured: a decoder with as many ``layers``, on prompts of a kind.

    ``tower`` is the vision tower in front of it; without one a prompt holds the features of the video. ``mask`` says
    whether a prompt comes with an attention mask, as processors make one.
    """

    shape: Shape
    layers: int
    dtype: torch.dtype
    tower: TowerShape | None = None
    mask: bool = True


class Prompt(nn.Module):
    """A language model that reads a prompt of text and video, as the models of transformers hand it one."""

    def __init__(self, language_model: Any, tower: Tower | None) -> None:
        super().__init__()
        self.language_model = language_model
        self.tower = tower

    def forward(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        is_visual: Tensor | None = None,
        video: Tensor | None = None,
        past_key_values: Any = None,
    ) -> tuple[Tensor, Any]:
        """Make one call.

        Args:
            embeddings: ``[1, S, C]`` of the tokens.
            attention_mask: ``[1, S]``, and what is in the cache, or None.
            is_visual: ``[1, S]`` bool.
            video: the frames for the tower, or else ``[V, C]`` float, in place of the embeddings of visual tokens.
            past_key_values: the cache of an earlier call.

        Returns:
            The logits of the last position, and the cache.
        """
        if is_visual is not None and video is not None:
            features = video if self.tower is None else self.tower(video)
            embeddings = embeddings.masked_scatter(is_visual[..., None].expand_as(embeddings), features)
        output = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            logits_to_keep=1,
            use_cache=True,
        )
        return output.logits, output.past_key_values


def build(setup: Setup, device: str) -> Prompt:
    """Return a model with random weights."""
    sizes: dict[str, Any] = asdict(setup.shape) | {"max_position_embeddings": 2_000_000}
    config = CONFIG_MAPPING[sizes.pop("kind")](**sizes | {"num_hidden_layers": setup.layers})
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=setup.dtype)
        tower = None if setup.tower is None else Tower(setup.tower, setup.shape.hidden_size, setup.dtype)
    return Prompt(model, tower).eval()


def inputs(setup: Setup, visual: int, device: str) -> dict[str, Tensor | None]:
    """Return a prompt of ``visual`` visual tokens between text, as the arguments of ``Prompt``.

    Raises:
        BenchError: where the tower gives no such number of tokens.
    """
    if setup.tower is not None and visual % TOKENS_OF_FRAME:
        raise BenchError(f"--tokens {visual}: must be a multiple of {TOKENS_OF_FRAME}, the tokens of a frame")
    length = visual + _TEXT
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*size: int) -> Tensor:
        if device == "meta":
            return torch.empty(size, dtype=setup.dtype, device=device)
        return torch.randn(size, generator=generator).to(dtype=setup.dtype, device=device)

    is_visual = torch.zeros(1, length, dtype=torch.bool, device=device)
    is_visual[:, _TEXT // 2 : _TEXT // 2 + visual] = True
    return {
        "embeddings": random(1, length, setup.shape.hidden_size),
        "attention_mask": torch.ones(1, length, dtype=torch.int64, device=device) if setup.mask else None,
        "is_visual": is_visual,
        "video": random(visual, setup.shape.hidden_size)
        if setup.tower is None
        else random(visual // TOKENS_OF_FRAME, *FRAME),
    }

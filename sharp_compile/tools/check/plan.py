"""What is measured on a device, and in which order: what tells most comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sharp_compile.tools.bench.decoders import SHAPES, Setup

LAYER = 1
_LLAVA_ONEVISION_7B = "llava-onevision-7b"
_MEMORY_OF_7B = 40e9
"""Bytes: the weights of 7 billion parameters in bfloat16 take 15 GB, a prefill of 25,000 tokens some 10 more."""


@dataclass(frozen=True)
class Way:
    """One way to run a prefill: ``name`` as in ``rows.Prefill``, and the share kept, None where nothing is pruned."""

    name: str
    retention: float | None = None

    @property
    def in_words(self) -> str:
        """The name, and what is kept."""
        return self.name if self.retention is None else f"{self.name}, {self.retention:.0%}"


@dataclass(frozen=True)
class Round:
    """Ways that are timed in turns, on one prompt."""

    visual_tokens: int
    mask: bool
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Plan:
    """A decoder, and the rounds; the pruned way of the first is also profiled."""

    model: str
    setup: Setup
    rounds: tuple[Round, ...]
    repeats: int

    def counted(self) -> Iterator[tuple[int, float | None]]:
        """Yield each number of visual tokens with each share kept, as they come."""
        pairs = ((each.visual_tokens, way.retention) for each in self.rounds for way in each.ways)
        yield from dict.fromkeys(pairs)


_UNPRUNED = Way("eager"), Way("inductor")
_SHARP_10, _SHARP_5 = Way("sharp", 0.10), Way("sharp", 0.05)
_REPLAYED = "sharp, cudagraphs"
_FURTHER = Way(_REPLAYED, 0.10), _SHARP_5, Way(_REPLAYED, 0.05)


def plan(device: str) -> Plan:
    """Return what is measured on ``cuda``: LLaVA-OneVision's decoder. On ``cpu``: its proportions, small.

    Where 7 billion parameters do not fit, it is the decoder of 0.5 billion.
    """
    if device == "cpu":
        setup = Setup(SHAPES[_LLAVA_ONEVISION_7B].scaled(256), 4, torch.float32)
        # The last two tell how the peak grows; a mask of all pairs of a shorter prompt would not be its peak.
        small = (
            Round(1568, True, (*_UNPRUNED, _SHARP_10)),
            Round(3136, True, (_SHARP_10,)),
            Round(3136, False, (_SHARP_10,)),
        )
        return Plan(_LLAVA_ONEVISION_7B, setup, small, 3)
    fits = torch.cuda.get_device_properties(0).total_memory > _MEMORY_OF_7B
    model = _LLAVA_ONEVISION_7B if fits else "llava-onevision-0.5b"
    setup = Setup(SHAPES[model], SHAPES[model].num_hidden_layers, torch.bfloat16)
    most = *_UNPRUNED, _SHARP_10
    rounds = (
        Round(6272, True, most),
        Round(25_000, True, most),
        Round(6272, False, most),
        Round(6272, True, _FURTHER),
        Round(25_000, True, _FURTHER),
        Round(25_000, False, most),
        Round(6272, False, _FURTHER),
        Round(25_000, False, _FURTHER),
    )
    return Plan(model, setup, rounds, 5)

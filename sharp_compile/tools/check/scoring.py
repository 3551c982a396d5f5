"""What scoring costs beside the decoder layer that it sits in."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch
from transformers import Qwen2Config

from sharp_compile.tools.bench.scoring import layer_and_selection
from sharp_compile.tools.timing import seconds_of

from .plan import Plan
from .rows import Scoring


def scoring(device: str, what: Plan, tokens: int) -> Iterator[Scoring]:
    """Yield the times of a layer and of the selection of ``sharp``, for a video that moves and one that does not."""
    shape = what.setup.shape
    config = Qwen2Config(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        num_hidden_layers=1,
    )
    for moves in (True, False):
        with torch.no_grad():
            calls = layer_and_selection(config, tokens, moves, {"retention": 0.10}, what.setup.dtype, device)
            for call in calls:
                call()
            layer_s, scoring_s = (median(seconds_of(call) for _ in range(2 * what.repeats + 1)) for call in calls)
        yield Scoring(tokens, moves, layer_s, scoring_s)

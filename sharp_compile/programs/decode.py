"""A step of decoding on the caches of a pruned prefill, as an ``ExportedProgram``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..integrations.transformers import cache_state, prepare_model
from ..integrations.transformers.broadcast_masks import broadcasting
from .capture import cache_in, kept_names
from .signature import Program, to_program

# What ``forward`` calls its cache, in newer versions and in older ones.
CACHES = ("cache", "past_key_values")


def export_step(model: nn.Module, like: Any, state: Mapping[str, Tensor], dynamic: bool) -> ExportedProgram:
    """Export one step of decoding.

    Args:
        model: The model.
        like: A cache that the prefill filled.
        state: An example of what a prefill returned, without its logits.
        dynamic: Whether sizes may vary.

    Raises:
        CannotPrune: Where ``torch.export`` can't trace it.
    """
    prepare_model(model)
    step = _Step(model, like)
    mask = state["attention_mask"]
    inputs = {"input_ids": torch.zeros_like(mask[:, :1], dtype=torch.int64), **state}
    varying = {name: _varying(value) for name, value in inputs.items()} if dynamic else {}
    with broadcasting():
        return to_program(Program(model, tuple(inputs), step), inputs, varying)


def _varying(value: Tensor) -> tuple[int, ...]:
    """Return the dimensions of an input that may vary: rows and positions, of keys and values ``[B, H, N, D]`` too."""
    if not value.is_floating_point():
        return tuple(range(value.ndim))
    return (0, 2) if value.ndim == 4 else (0,)


class _Step:
    """One step: takes a token of each row and the state, and returns logits and the state after it."""

    def __init__(self, model: nn.Module, like: Any) -> None:
        self.model, self.like = model, like
        self.kept = kept_names(cache_state.kept_of(like))
        taken = inspect.signature(model.forward).parameters
        self.cache_name = next(name for name in CACHES if name in taken)

    def __call__(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = given["attention_mask"]
        seen = mask.shape[1]
        after = {"attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], 1)}
        kept = {layer: given[name] for layer, name in self.kept.items()}
        arguments: dict[str, Any] = {self.cache_name: cache_state.filled(self.like, given, kept, seen)}
        if (position := given.get("next_position")) is not None:
            arguments["position_ids"] = position[..., None]
            after["next_position"] = position + 1
        for name in dict.fromkeys(self.kept.values()):
            after[name] = torch.cat([given[name], torch.full_like(given[name][:, :1], seen)], 1)
        output = self.model.forward(
            input_ids=given["input_ids"], attention_mask=after["attention_mask"], use_cache=True, **arguments
        )
        after |= cache_state.tensors_of(cache_in(output))
        state = {name: after[name].contiguous() for name in given if name != "input_ids"}
        return {"logits": output.logits, **state}

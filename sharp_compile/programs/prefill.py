"""The pruned prefill of a model as an ``ExportedProgram``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..integrations.transformers.features import Input, watch_features
from .capture import Captured, Feature, Size, Source, Weight, capture, tensors_in
from .known_values import KnownValues
from .signature import Program, to_program


def export_prefill(
    model: nn.Module, inputs: Mapping[str, Any], options: Mapping[str, Any], dynamic: bool
) -> tuple[ExportedProgram, Captured]:
    """Export a model's forward call, pruned.

    Args:
        model: The model.
        inputs: The keyword arguments of the call; the tensors are the program's inputs, the others are fixed.
        options: Those of the backend.
        dynamic: Whether sizes of inputs may vary.

    Returns:
        The program, and what was captured for it.

    Raises:
        CannotPrune: Where that can't be done, with the reason.
    """
    calls, positions = watch_features(model, inputs)
    if positions is not None and inputs.get("position_ids") is None:
        inputs = {**inputs, "position_ids": positions}
    captured = capture(model, inputs, calls, options, dynamic)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made: list[Tensor] = []
        with KnownValues(given, tensors):
            for call in captured.calls:
                made += tensors_in(call.repeat(model, given))
        args = [_value(source, model, given, made) for source in captured.sources]
        captured.check_sizes(args)
        results = captured.module(*args)
        if captured.text is not None:
            _check_text(results[captured.text], results[captured.results["kept"]])
        outputs = {name: results[place] for name, place in captured.results.items()} | _beside(given)
        # A compiled step reads them by the strides that its example had.
        return {name: value.contiguous() for name, value in outputs.items()}

    varying = {name: _varying(value) for name, value in tensors.items()} if dynamic else {}
    return to_program(Program(model, tuple(tensors), run), tensors, varying), captured


def _check_text(text: Tensor, kept: Tensor) -> None:
    """Have the program end with an error for a row with more text ``[B]`` than positions are kept ``[B, S']``."""
    message = (
        "a row has more text tokens than positions are kept: the batch mixes videos with rows of little or no video; "
        "run those apart, or export with a higher retention"
    )
    torch._assert_async((text <= kept.shape[1]).all(), message)


def _varying(value: Tensor) -> range:
    """Return the dimensions of an input that may vary: of pixels how many there are, not channels, height and width."""
    return range(max(value.ndim - 3, 1) if value.is_floating_point() else value.ndim)


def _value(source: Source, model: nn.Module, given: Mapping[str, Tensor], made: list[Tensor]) -> Any:
    """Return what an input of the captured graph is given."""
    match source:
        case Input(name):
            return given[name]
        case Weight(name):
            owner, _, attribute = name.rpartition(".")
            return getattr(model.get_submodule(owner), attribute)
        case Feature(place):
            return made[place]
        case Size(of, dim):
            return _value(of, model, given, made).shape[dim]
    return source


def _beside(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a decode step needs beside the cache: the mask of all positions, and the position that comes next."""
    state: dict[str, Tensor] = {}
    mask, tokens = given.get("attention_mask"), given.get("input_ids", given.get("inputs_embeds"))
    if mask is not None:
        state["attention_mask"] = mask.clone()
    elif tokens is not None:
        state["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
    if (positions := given.get("position_ids")) is not None:
        # [B, S], or [axes, B, S], which all go on from the largest of them.
        largest = positions.amax(-1)
        if positions.ndim == 3:
            largest = largest.amax(0, keepdim=True).expand_as(largest)
        state["next_position"] = largest + 1
    return state

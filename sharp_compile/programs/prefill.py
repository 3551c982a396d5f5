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

META = "sharp_compile"


def export_prefill(
    model: nn.Module, inputs: dict[str, Any], options: Mapping[str, Any], dynamic: bool
) -> ExportedProgram:
    calls, positions = watch_features(model, inputs)
    if positions is not None and inputs.get("position_ids") is None:
        inputs = inputs | {"position_ids": positions}
    captured = capture(model, inputs, calls, options, dynamic)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made: list[Tensor] = []
        with KnownValues(given, tensors):
            for call in captured.calls:
                made += tensors_in(call.repeat(model, given))
        results = captured.module(*(_value(source, model, given, made) for source in captured.sources))
        outputs = {name: results[place] for name, place in captured.results.items()}
        return outputs

    program = to_program(Program(model, tuple(tensors), run), tensors, dynamic)
    return program


def _value(source: Source, model: nn.Module, given: Mapping[str, Tensor], made: list[Tensor]) -> Any:
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

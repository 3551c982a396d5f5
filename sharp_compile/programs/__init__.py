"""Pruned models as programs (``torch.export.ExportedProgram``), which run without this package and its models' code."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..options import DEFAULTS, Config
from ..passes.errors import CannotPrune
from ..unwrap import unwrap
from .capture import Captured
from .decode import export_step
from .prefill import export_prefill

_captured: weakref.WeakKeyDictionary[ExportedProgram, Captured] = weakref.WeakKeyDictionary()


def export(model: nn.Module, *, dynamic: bool = True, **given: Any) -> ExportedProgram:
    options = {name: value for name, value in given.items() if name in DEFAULTS}
    inputs = {name: value for name, value in given.items() if name not in DEFAULTS}
    Config.parse(options)
    model = unwrap(model)
    program, captured = export_prefill(model, inputs, options, dynamic)
    _captured[program] = captured
    return program


def export_decode(model: nn.Module, prefill: ExportedProgram, *, dynamic: bool = True) -> ExportedProgram:
    captured = _captured[prefill]
    _, inputs = prefill.example_inputs
    # Clones: that an example is a view of something would be a guard of the program.
    state = {name: value.clone() for name, value in prefill.module()(**inputs).items() if name != "logits"}
    return export_step(unwrap(model), captured.cache, state, dynamic)

"""A backend for `torch.compile` that makes video language models faster by dropping visual tokens.

    model.compile(backend="sharp", options={"retention": 0.10})

`sharp_compile.backend` is where a graph comes in; see the README for its way from there.
"""

from __future__ import annotations

from typing import TypeVar

from . import requirements

requirements.check("torch", "transformers")

import torch

from .calibration import Calibration, calibrate
from .config import Config
from .explain import Explanation, explain
from .integrations import accelerate
from .integrations.transformers import generation
from .integrations.transformers.prompt import tell_visual_tokens
from .passes.errors import CannotPrune
from .report import GraphReport, reports, reset
from .said import visual_tokens
from .selectors import Context
from .unwrap import unwrap

__all__ = [
    "Calibration",
    "CannotPrune",
    "Context",
    "Explanation",
    "GraphReport",
    "calibrate",
    "compile",
    "explain",
    "reports",
    "reset",
    "visual_tokens",
]

Model = TypeVar("Model", bound=torch.nn.Module)

accelerate.install()
generation.install()


def compile(model: Model, **options: object) -> Model:
    """Compiles `model` in place; `generate` is compiled too.

    Beside ``model.compile(backend="sharp", options=options)`` it tells each call which of its tokens are visual
    (`visual_tokens`), if the model's config and ``input_ids`` show it: for models that inject their features where no
    graph shows it. A model that is wrapped (PEFT, ``DistributedDataParallel``) is compiled inside of its wrappers, and
    a ``compile`` of its class's own is not asked. As ever in torch, a deep copy of a compiled module is not compiled.

    Args:
        model: a module.
        options: those of the backend, by keyword.

    Returns:
        The same model.

    Raises:
        ValueError: for a bad option, before anything is compiled.
    """
    Config.parse(options)
    # By its name, torch would register it, which only one thread can.
    from .backend import sharp
    from .recompilation import isolated

    inside = unwrap(model)
    torch.nn.Module.compile(inside, backend=sharp, options=options, **isolated())
    tell_visual_tokens(inside, options)
    return model

"""Modules as ``torch.export`` takes them: every input a keyword of its own, every size that may vary told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..passes.errors import CannotPrune


class Program(nn.Module):
    """A function of named tensors, over the weights of a model."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], run: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.model = model
        self.forward = _with_keywords(names, run)


def _with_keywords(names: tuple[str, ...], run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run``, with the keywords in its signature: ``torch.export`` names inputs by it."""

    def forward(**inputs: Any) -> Any:
        return run(inputs)

    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, keyword) for name in names])  # type: ignore[attr-defined]
    return forward


def to_program(module: Program, inputs: Mapping[str, Tensor], dynamic: bool) -> ExportedProgram:
    """Export a module.

    Args:
        module: What to export.
        inputs: An example.
        dynamic: Whether sizes may vary: all those that the module does not fix.

    Raises:
        CannotPrune: Where ``torch.export`` can't trace it.
    """
    shapes = {name: dict.fromkeys(range(value.ndim), Dim.AUTO) for name, value in inputs.items()} if dynamic else None
    try:
        with torch.no_grad():
            program = torch.export.export(module, (), dict(inputs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise CannotPrune(f"torch.export can't trace it: {type(error).__name__}: {error}") from error
    drop_unused_weights(program)
    return program


def drop_unused_weights(program: ExportedProgram) -> None:
    """Leave out of a program the weights that it does not read."""

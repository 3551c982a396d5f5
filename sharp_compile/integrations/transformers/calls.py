"""The calls of models of transformers that are under way, read from the stack."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any


def calls_under_way() -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield the models that are being called, the innermost first, each with its arguments by name."""
    if "transformers" not in sys.modules:
        return
    from transformers import PreTrainedModel

    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        given = frame.f_locals
        model = given.get("self")
        if isinstance(model, PreTrainedModel):
            yield model, {**_positional(model, given.get("args")), **_mapping(given.get("kwargs")), **given}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _positional(model: Any, args: Any) -> dict[str, Any]:
    """Positional arguments of a model's ``forward``, which the frames around it have without names."""
    if not isinstance(args, tuple) or not args:
        return {}
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False))

"""Marks what ``module.compile()`` made with this backend, so that it can be told from what others made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

_MARK = "_is_of_sharp_compile"


def mark(call: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Mark a compiled call, and what wraps it by ``functools.wraps``, with the options of the backend; return it."""
    setattr(call, _MARK, options)
    return call


def options_of(module: torch.nn.Module) -> Mapping[str, Any] | None:
    """Return the options with which ``module`` was compiled in place with this backend; None where it was not."""
    return getattr(module._compiled_call_impl, _MARK, None)


def holds_compiled(module: torch.nn.Module) -> bool:
    """Return whether ``module`` or one inside was."""
    return any(options_of(part) is not None for part in module.modules())

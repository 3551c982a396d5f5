"""Marks what `module.compile()` made with this backend, so that it can be told from what others made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_MARK = "_is_of_sharp_compile"


def mark(call: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a compiled call, and what wraps it by `functools.wraps`; return it."""
    setattr(call, _MARK, True)
    return call


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether `module` was compiled in place with this backend."""
    return hasattr(module._compiled_call_impl, _MARK)


def holds_compiled(module: torch.nn.Module) -> bool:
    """Whether `module` or one inside was."""
    return any(is_compiled(part) for part in module.modules())

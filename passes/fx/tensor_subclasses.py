"""Tensors that wrap others, such as quantised weights.

Their class says what an operator does, and does it with the plain tensors inside: so these are what a proof has to
run on, and what a trace has to see. A tensor inside may wrap others in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, transform_subclass


def is_wrapper(value: Any) -> bool:
    """Return whether a tensor wraps others."""
    return is_traceable_wrapper_subclass(value)


def names_inside(value: Any) -> list[str]:
    """Return the attributes of a wrapper that are tensors: one that processes share also names their mesh."""
    return [name for name in value.__tensor_flatten__()[0] if isinstance(getattr(value, name), Tensor)]


def plain_tensors(value: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors inside a wrapper, in a fixed order; a plain tensor itself."""
    if not is_wrapper(value):
        yield value
        return
    for name in names_inside(value):
        yield from plain_tensors(getattr(value, name))


def rewrapped(
    value: Tensor, change: Callable[[Tensor], Tensor], size: Callable[[Any], Any] = lambda size: size
) -> Tensor:
    """A wrapper like `value`: around what `change` makes of its plain tensors, of what `size` makes of its sizes."""
    if not is_wrapper(value):
        return change(value)
    shape, stride = tuple(map(size, value.shape)), tuple(map(size, value.stride()))
    return transform_subclass(value, lambda _, inner: rewrapped(inner, change, size), shape, stride)


def kind_of(value: Tensor) -> str:
    """Return all that a wrapper is beside its tensors, "" for a plain tensor."""
    if not is_wrapper(value):
        return ""
    context = value.__tensor_flatten__()[1]  # type: ignore[attr-defined]
    return str((type(value), context, [(name, kind_of(getattr(value, name))) for name in names_inside(value)]))

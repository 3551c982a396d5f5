"""How a layer looks: what it has in common with those that compute the same on other weights."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...passes.canonicalize.equal_layers import look_of

NUMBER = "layer_idx"
"""The attribute of a layer, or of its parts, that is its number in transformers."""

CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.device)


class NoKind(Exception):
    """No other layer can be told to be equal to this one; the message says why."""


def number_of(layer: nn.Module) -> int | None:
    """Return the number that a layer and its parts have; None where they have none."""
    numbers = {vars(part)[NUMBER] for part in layer.modules() if NUMBER in vars(part)}
    if len(numbers) > 1 or not all(type(number) is int for number in numbers):
        raise NoKind(f"its parts have several numbers, {numbers}")
    return numbers.pop() if numbers else None


def looks_of(layer: nn.Module) -> Iterator[Hashable]:
    """Yield what equal layers have in common: all but the numbers in their tensors, and their own number."""
    if any(value for name, value in vars(nn.modules.module).items() if name.startswith("_global_") and "hooks" in name):
        raise NoKind("hooks are registered for all modules")
    places: dict[int, int] = {}  # of tensors, which several modules may share
    for path, part in layer.named_modules():
        state = dict(vars(part))
        tensors, children = state.pop("_parameters") | state.pop("_buffers"), state.pop("_modules")
        state.pop(NUMBER, None)
        yield path, type(part), tuple(children)
        for name, tensor in tensors.items():
            if tensor is not None and type(tensor) not in (Tensor, nn.Parameter):
                raise NoKind(f"its {path}.{name} is a {type(tensor).__name__}")
            yield name, None if tensor is None else (look_of(tensor), places.setdefault(id(tensor), len(places)))
        for name, value in sorted(state.items()):
            if isinstance(value, Tensor) or ("hook" in name and isinstance(value, dict) and value):
                raise NoKind(f"its {path} has {name}")
            yield name, type(value), _constant(value)


def _constant(value: Any) -> Hashable:
    """Return what equal attributes have in common; an object that may change is equal to itself only."""
    if isinstance(value, dict):
        return tuple((_constant(key), type(each), _constant(each)) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple((type(each), _constant(each)) for each in value)
    if isinstance(value, functools.partial):
        return _constant(value.func), _constant(value.args), _constant(value.keywords)
    return value if isinstance(value, CONSTANTS) else id(value)

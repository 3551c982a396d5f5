"""The tensors of a cache, by names that a program's inputs and outputs can have, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import SymInt, Tensor
from torch.utils import _pytree as pytree

from . import positions

_SINGULAR = {"keys": "key", "values": "value"}
# What layers of transformers count the positions by that they have seen.
_COUNTS = ("cumulative_length", "cumulative_length_int")


def tensors_of(cache: Any) -> dict[str, Tensor]:
    """Return what a cache holds, layer by layer.

    Returns:
        ``key_0`` and ``value_0`` ``[B, H, N, D]`` and so on; what else a layer holds (states of convolutions and of
        recurrences) by the layer's own name for it, and the layer's number.
    """
    return {
        name: value
        for number, layer in enumerate(cache.layers)
        for name, value in _named(layer, number).items()
        if value.numel()
    }


def kept_of(cache: Any) -> dict[int, Tensor]:
    """Return the positions ``[B, N]`` that are held by the layers that don't hold all, by the number of the layer."""
    found = ((number, positions.kept_in(layer)) for number, layer in enumerate(cache.layers))
    return {number: kept for number, kept in found if kept is not None}


def filled(like: Any, tensors: Mapping[str, Tensor], kept: Mapping[int, Tensor], seen: int | SymInt) -> Any:
    """Return a cache of the kind of ``like`` that holds other tensors.

    Args:
        like: A cache with layers of the same kinds, which is only read.
        tensors: By the names of ``tensors_of``.
        kept: As ``kept_of`` has it: all positions that these layers hold.
        seen: How many positions the cache has seen.
    """
    cache = copy.copy(like)
    cache.layers = [
        _filled_layer(layer, number, tensors, kept.get(number), seen) for number, layer in enumerate(like.layers)
    ]
    positions.track(cache, kept, seen)
    return cache


def _filled_layer(like: Any, number: int, tensors: Mapping[str, Tensor], kept: Any, seen: Any) -> Any:
    layer = copy.copy(like)
    for attribute, value in _held(like).items():
        names = _names(attribute, number, value)
        leaves, spec = pytree.tree_flatten(value)
        places = iter(names)
        filled = [tensors.get(next(places), leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        setattr(layer, attribute, pytree.tree_unflatten(filled, spec))
    for count in _COUNTS:
        if isinstance(getattr(layer, count, None), int):
            setattr(layer, count, seen)
    return layer


def _held(layer: Any) -> dict[str, Any]:
    """Return the attributes of a layer that hold its state, those of ours and private constants left out."""
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith(("_", "sharp_")) and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    }


def _names(attribute: str, number: int, value: Any) -> list[str]:
    base = f"{_SINGULAR.get(attribute, attribute)}_{number}"
    count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    return [base] if count == 1 else [f"{base}_{place}" for place in range(count)]


def _named(layer: Any, number: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for attribute, value in _held(layer).items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        found.update(zip(_names(attribute, number, value), tensors, strict=True))
    return found

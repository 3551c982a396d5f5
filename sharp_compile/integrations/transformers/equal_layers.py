"""Has Dynamo trace the first of equal layers only, where it traces for this backend.

Dynamo takes a decoder apart layer by layer, though most differ in their weights only. Here each layer is looked at
before it is traced. If its modules are of the same classes as those of one before, with the same attributes and with
parameters of the same looks, and if its arguments are of the same form, then it is not traced but asks for the same
(``passes.canonicalize.equal_layers``). What Dynamo guards on in the first, it guards on in this one too.

What differs between such layers is their number (``layer_idx``). It is hidden while the first is traced: it stands for
the layer's place in the cache, and nothing else can be done with it. What a layer hands to the cache goes there for
each layer by itself.

Which layers are equal is found in ``layer_kinds``. Where any of this turns out not to hold, the frame is traced again,
and layers of that class one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ... import patches
from ...passes.canonicalize.equal_layers import EQUAL_LAYER, TRACED_LAYER
from . import positions
from .layer_kinds import (
    check_looks,
    close,
    form_of_results,
    is_traced,
    name_of_kind,
    number_of_updates,
    paths_of_numbers,
    paths_of_tensors,
    refuse,
)


def install() -> None:
    """Have layers of transformers ask whether they are equal to one before."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    patches.replace(
        GradientCheckpointingLayer,
        "__call__",
        _calling,
        target="transformers.modeling_layers.GradientCheckpointingLayer.__call__",
        versions=patches.TRANSFORMERS,
        why="Dynamo would trace every one of equal layers",
        acts="layers that are traced for this backend, where no gradients are computed",
    )


def _calling(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def calling(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling() or torch.is_grad_enabled():
            return call(self, *args, **kwargs)
        name = name_of_kind()
        if name == "":
            return call(self, *args, **kwargs)
        # Dynamo takes a millisecond for a call of a function: paths are followed here.
        number: Any = 0
        for path in paths_of_numbers(name).split():
            number = self
            for part in path.split("."):
                number = getattr(number, part)
        values, cache = [], None
        for value in [*args, *kwargs.values()]:
            if isinstance(value, Tensor):
                values.append(value)
            elif isinstance(value, tuple):
                values.extend(value)
            elif hasattr(value, "update"):
                cache = value
        for path in paths_of_tensors(name).split():
            tensor: Any = self
            for part in path.split("."):
                tensor = getattr(tensor, part)
            values.append(tensor)
        if is_traced(name):
            return _equal(name, values, cache, number)
        TRACED_LAYER(values, name, 0)
        slot = _Slot(cache, number, name)
        args = tuple([slot if cache is not None and value is cache else value for value in args])
        kwargs = {key: slot if cache is not None and value is cache else value for key, value in kwargs.items()}
        _set_number(self, name, _HIDDEN)
        result = call(self, *args, **kwargs)
        _set_number(self, name, number)
        form, values = "", []
        for value in result if isinstance(result, tuple) else [result]:
            if isinstance(value, Tensor):
                form += "t"
                values.append(value)
            else:
                form += "n" if value is None else "?"
        TRACED_LAYER(values, name, 2 * slot.updates + 1)
        close(name, f"({form})" if isinstance(result, tuple) else form, slot.updates)
        return result

    return calling


def _equal(name: str, values: list[Tensor], cache: Any, number: int) -> Any:
    """Return what a layer gives that is equal to the traced one of a name."""
    values = EQUAL_LAYER(values, name, 0)
    for step in range(number_of_updates(name)):
        keys, all_values = cache.update(values[0], values[1], number)
        values = [keys, all_values]
        check_looks(name, 2 * step + 2)
        values = EQUAL_LAYER(values, name, 2 * step + 2)
    form = form_of_results(name)
    if form == "t":
        return values[0]
    result, place = [], 0
    for kind in form[1:-1]:
        result.append(values[place] if kind == "t" else None)
        place += kind == "t"
    return tuple(result)


def _set_number(layer: nn.Module, name: str, number: Any) -> None:
    for path in paths_of_numbers(name).split():
        *parts, last = path.split(".")
        module = layer
        for part in parts:
            module = getattr(module, part)
        setattr(module, last, number)


class _Slot:
    """Stands for the cache while a layer is traced, which reaches no more of it than its own place."""

    def __init__(self, cache: Any, number: int, name: str) -> None:
        self.cache, self.number, self.name = cache, number, name
        self.updates = 0
        # A layer that comes here is given an empty place in the cache: it holds all that was seen.
        setattr(self, positions.TRACKED, False)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: Any, *args: Any, **kwargs: Any) -> Any:
        """Hand keys and values to the cache. It does not look at what else it is given, or it would not be here."""
        if layer_idx is not _HIDDEN:
            refuse(self.name, "it reaches for another layer's place in the cache")
        TRACED_LAYER([key_states, value_states], self.name, 2 * self.updates + 1)
        keys, values = self.cache.update(key_states, value_states, self.number)
        self.updates += 1
        TRACED_LAYER([keys, values], self.name, 2 * self.updates)
        return keys, values

    def __getattr__(self, name: str) -> Any:
        refuse(self.name, "it does more with the cache than to update it")


class _Hidden:
    """Stands for the number of the layer that is traced."""

    def _refuse(self, *args: Any) -> Any:
        refuse("", "it looks at its number")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = __neg__ = _refuse
    __index__ = __int__ = __float__ = __bool__ = __hash__ = __str__ = __repr__ = __format__ = _refuse


_HIDDEN = _Hidden()

"""Which layers of a frame are equal, answered while Dynamo traces them (``equal_layers`` asks).

Most functions here are called by code that Dynamo traces, which takes their answers for constants; so they return
numbers and strings.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables import ConstantVariable, TensorVariable, TupleVariable
from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew
from torch._guards import ChainedSource, Source, TracingContext
from torch._subclasses.fake_tensor import FakeTensor

from ...passes.canonicalize.equal_layers import NotEqual, look_of, looks_of_traced
from ..tracing import TraceAgain, setting_traced_for
from .layer_looks import CONSTANTS, NUMBER, NoKind, looks_of, number_of

log = logging.getLogger(__name__)

_CACHE = "cache"


@dataclass
class _Traced:
    """A layer that is traced, or was.

    Attributes:
        name: of it, in the graph.
        layer: the module.
        source: how Dynamo reaches it.
        cache: how Dynamo reaches the cache that it is given; None where Dynamo made that itself, or there is none.
        family: what is not tried again if it turns out that others are not equal to it.
        written: what the frame had written into when it began.
        guards: on it, once it is traced.
        given: the form of what it returns: ``t`` for a tensor, ``n`` for None, in brackets for a tuple.
        updates: how many times it handed keys and values to the cache.
    """

    name: str
    layer: nn.Module
    source: Source
    cache: Source | None
    family: Hashable
    written: set[Hashable]
    guards: list[Any] = field(default_factory=list)
    given: str = ""
    updates: int = 0
    is_open: bool = True


@dataclass
class _Frame:
    """The layers that were traced in a frame, by name, and their names by what equal ones have in common."""

    traced: dict[str, _Traced] = field(default_factory=dict)
    kinds: dict[Hashable, str] = field(default_factory=dict)


_names = (f"layer {number}" for number in itertools.count())

# Families of layers that are traced one by one.
_apart: set[Hashable] = set()


def trace_apart(error: NotEqual) -> None:
    """Have layers traced one by one that were taken for equal to one, from the next attempt on."""
    log.debug("layers are traced one by one: %s", error)
    _apart.add(_frame().traced[error.layer].family)


@torch._dynamo.assume_constant_result
def name_of_kind() -> str:
    """Return the name of the layer that the calling one is equal to, or its own; none if it is traced by itself."""
    try:
        return _find_kind()
    except NoKind as reason:
        log.debug("a layer is traced by itself: %s", reason)
    except Exception as error:  # another version of Dynamo may be made otherwise
        log.debug("layers are traced one by one: %s: %s", type(error).__name__, error)
    return ""


@torch._dynamo.assume_constant_result
def paths_of_numbers(name: str) -> str:
    """Return where a layer has its number, in itself and in its parts, with spaces between."""
    layer = _frame().traced[name].layer
    parts = [path for path, part in layer.named_modules() if NUMBER in vars(part)]
    return " ".join(f"{path}.{NUMBER}".removeprefix(".") for path in parts)


@torch._dynamo.assume_constant_result
def paths_of_tensors(name: str) -> str:
    """Return where a layer has its parameters and buffers, with spaces between."""
    layer = _frame().traced[name].layer
    return " ".join(path for path, _ in [*layer.named_parameters(), *layer.named_buffers()])


@torch._dynamo.assume_constant_result
def is_traced(name: str) -> bool:
    """Return whether the layer of a name is traced already; if not, it is the one that asks."""
    return not _frame().traced[name].is_open


@torch._dynamo.assume_constant_result
def number_of_updates(name: str) -> int:
    """Return how many times a layer hands keys and values to the cache."""
    return _frame().traced[name].updates


@torch._dynamo.assume_constant_result
def form_of_results(name: str) -> str:
    """Return the form of what a layer gives: ``t`` for a tensor, ``n`` for None, in brackets for a tuple."""
    return _frame().traced[name].given


@torch._dynamo.assume_constant_result
def check_looks(name: str, step: int) -> None:
    """Have layers traced one by one unless the caller's ``values`` look like those of the traced one."""
    values = [_example(value.realize()) for value in _locals()["values"].realize().items]
    if [look_of(value) for value in values] != looks_of_traced(values, name, step):
        refuse(name, "the cache gave it something else")


@torch._dynamo.assume_constant_result
def close(name: str, given: str, updates: int) -> None:
    """Note what a layer gave, and that it is traced."""
    traced, output = _frame().traced[name], InstructionTranslator.current_tx().output
    traced.given, traced.updates, traced.is_open = given, updates, False
    traced.guards = [guard for guard in output.guards.inner if _is_of(guard.originating_source, traced.source)]
    if "?" in given:
        refuse(name, "it gives more than tensors")
    if not _written(traced.cache) <= traced.written:
        refuse(name, "it writes into what it was not given")


@torch._dynamo.assume_constant_result
def refuse(name: str, reason: str) -> NoReturn:
    """Have the frame traced again, and layers like that of a name, or like the one that is traced now, one by one."""
    log.debug("layers are traced one by one: %s", reason)
    _apart.update(each.family for key, each in _frame().traced.items() if each.is_open or key == name)
    raise TraceAgain(f"layers look equal to one that can't stand for them: {reason}")


def _frame() -> _Frame:
    """Return the layers of the frame that Dynamo traces: they are forgotten with it."""
    frame: _Frame = vars(TracingContext.get()).setdefault("sharp_layers", _Frame())
    return frame


def _locals() -> dict[str, Any]:
    """Return the variables of the function that asks, as Dynamo tracks them."""
    variables: dict[str, Any] = InstructionTranslator.current_tx().output.current_tx.symbolic_locals
    return variables


def _find_kind() -> str:
    """Return the name of the kind of the layer that asks; a new one opens it.

    Raises:
        NoKind: where it is to be traced by itself.
    """
    output, frame, setting = InstructionTranslator.current_tx().output, _frame(), setting_traced_for()
    if setting is None or not setting.reuse_layers:
        raise NoKind("equal layers are not looked for")
    if getattr(torch._dynamo.config, "nested_graph_breaks", False):
        raise NoKind("a graph may end inside of it")
    if output.current_tx is output.root_tx or any(each.is_open for each in frame.traced.values()):
        raise NoKind("it is the whole frame, or inside a layer")
    this, positional, named = (_locals()[name].realize() for name in ("self", "args", "kwargs"))
    layer: nn.Module = this.value
    if this.source is None:
        raise NoKind("the frame made it")
    number = number_of(layer)
    names = [key.vt.as_python_constant() for key in named.items]
    arguments = [argument.realize() for argument in [*positional.items, *named.items.values()]]
    forms = [_form(argument, number) for argument in arguments]
    if forms.count(_CACHE) > 1:
        raise NoKind("it is given two caches")
    kind = (*looks_of(layer), *names, *forms)
    if (name := frame.kinds.get(kind)) is not None:
        _guard_alike(frame.traced[name], this.source)
        return name
    family = type(layer), _CACHE in forms
    if family in _apart:
        raise NoKind("layers of this class turned out not to be equal")
    frame.kinds[kind] = name = next(_names)
    cache = next((argument.source for argument, form in zip(arguments, forms, strict=True) if form == _CACHE), None)
    frame.traced[name] = _Traced(name, layer, this.source, cache, family, _written(cache))
    return name


def _form(argument: Any, number: int | None) -> Hashable:
    """Return what arguments of equal layers have in common."""
    if isinstance(argument, TensorVariable):
        return look_of(_example(argument))
    if isinstance(argument, TupleVariable):
        items = [item.realize() for item in argument.items]
        if all(isinstance(item, TensorVariable) for item in items):
            return "tuple", *(look_of(_example(item)) for item in items)
    if isinstance(argument, ConstantVariable) and isinstance(argument.value, CONSTANTS):
        return type(argument.value), argument.value
    if number is not None and _is_empty_cache(argument, number):
        return _CACHE
    raise NoKind(f"it is given {argument}")


def _example(argument: Any) -> Tensor:
    value: Any = argument.as_proxy().node.meta["example_value"]
    if type(value) is not FakeTensor:
        raise NoKind(f"it is given a tensor of a kind of its own, {type(value).__name__}")
    return value


def _is_empty_cache(argument: Any, number: int) -> bool:
    """Return whether a value is a cache that takes nothing but keys and values from layers, and holds none of this."""
    from transformers import cache_utils

    if getattr(argument, "value_type", None) is not cache_utils.DynamicCache:
        return False
    frame = InstructionTranslator.current_tx()
    layers = [layer.realize() for layer in argument.var_getattr(frame, "layers").realize().items]
    kinds = {layer.value_type for layer in layers}
    if number >= len(layers):
        kinds.add(argument.var_getattr(frame, "layer_class_to_replicate").as_python_constant())
    if not kinds <= {cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer}:
        return False
    return number >= len(layers) or not layers[number].var_getattr(frame, "is_initialized").as_python_constant()


def _written(cache: Source | None) -> set[Hashable]:
    """Return what the frame has written into so far of all that it did not make itself, but for the cache."""
    effects = InstructionTranslator.current_tx().output.side_effects
    found: set[Hashable] = set()
    for variable in effects.id_to_variable.values():
        is_new = isinstance(variable.mutation_type, AttributeMutationNew | ValueMutationNew)
        if variable.mutation_type is None or is_new or not effects.is_modified(variable):
            continue
        names = set(effects.store_attr_mutations.get(variable, ()))
        if names != {NUMBER} and not (cache is not None and _is_of(variable.source, cache)):
            found.add((id(variable), len(getattr(variable, "items", ())), *sorted(names)))
    return found


def _is_of(source: Source | None, owner: Source) -> bool:
    while isinstance(source, ChainedSource) and source != owner:
        source = source.base
    return source == owner


def _guard_alike(traced: _Traced, source: Source) -> None:
    """Guard on a layer as on the one that was traced. Its tensors are guarded on where they are read."""
    guards = InstructionTranslator.current_tx().output.guards
    for guard in traced.guards:
        create, kind = guard.create_fn, guard.inner_create_fn()
        if kind is GuardBuilder.TENSOR_MATCH:
            continue
        if kind is GuardBuilder.DUPLICATE_INPUT:
            # One object, reached in two ways; where one is not of the layer, another layer need not have it too.
            other = create.keywords["source_b"]
            if not _is_of(other, traced.source):
                continue
            create = functools.partial(kind, source_b=_moved(other, traced.source, source))
        moved = _moved(guard.originating_source, traced.source, source)
        guards.add(moved.make_guard(create), collect_debug_stack=False)


def _moved(source: Any, old: Source, new: Source) -> Any:
    """Return how Dynamo reaches a part of the layer at ``new`` that it reaches by ``source`` in the one at ``old``."""
    return new if source == old else dataclasses.replace(source, base=_moved(source.base, old, new))

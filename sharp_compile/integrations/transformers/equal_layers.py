"""Has Dynamo trace the first of equal layers only, where it traces for this backend.

Dynamo takes a decoder apart layer by layer, though most differ in their weights only. Here each layer is looked at
before it is traced. If its modules are of the same classes as those of one before, with the same attributes and with
parameters of the same looks, and if its arguments are of the same form, then it is not traced but asks for the same
(``passes.canonicalize.equal_layers``). What Dynamo guards on in the first, it guards on in this one too.

What differs between such layers is their number (``layer_idx``). It is hidden while the first is traced: it stands for
the layer's place in the cache, and nothing else can be done with it. What a layer hands to the cache goes there for
each layer by itself.

Where any of this turns out not to hold, the frame is traced again, and layers of that class one by one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator
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

from ... import patches
from ...passes.canonicalize.equal_layers import EQUAL_LAYER, TRACED_LAYER, NotEqual, look_of, looks_of_traced
from ..tracing import TraceAgain, setting_traced_for
from . import positions

log = logging.getLogger(__name__)

_NUMBER = "layer_idx"
_CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.device)
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


class _NoKind(Exception):
    """No other layer can be told to be equal to this one; the message says why."""


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


def trace_apart(error: NotEqual) -> None:
    """Have layers traced one by one that were taken for equal to one, from the next attempt on."""
    log.debug("layers are traced one by one: %s", error)
    _apart.add(_frame().traced[error.layer].family)


def _calling(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def calling(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling() or torch.is_grad_enabled():
            return call(self, *args, **kwargs)
        name = _name_of_kind()
        if name == "":
            return call(self, *args, **kwargs)
        # Dynamo takes a millisecond for a call of a function: paths are followed here.
        number: Any = 0
        for path in _paths_of_numbers(name).split():
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
        for path in _paths_of_tensors(name).split():
            tensor: Any = self
            for part in path.split("."):
                tensor = getattr(tensor, part)
            values.append(tensor)
        if _is_traced(name):
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
        _close(name, f"({form})" if isinstance(result, tuple) else form, slot.updates)
        return result

    return calling


def _equal(name: str, values: list[Tensor], cache: Any, number: int) -> Any:
    """Return what a layer gives that is equal to the traced one of a name."""
    values = EQUAL_LAYER(values, name, 0)
    for step in range(_updates(name)):
        keys, all_values = cache.update(values[0], values[1], number)
        values = [keys, all_values]
        _check_looks(name, 2 * step + 2)
        values = EQUAL_LAYER(values, name, 2 * step + 2)
    form = _given(name)
    if form == "t":
        return values[0]
    result, place = [], 0
    for kind in form[1:-1]:
        result.append(values[place] if kind == "t" else None)
        place += kind == "t"
    return tuple(result)


def _set_number(layer: nn.Module, name: str, number: Any) -> None:
    for path in _paths_of_numbers(name).split():
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
            _trace_apart(self.name, "it reaches for another layer's place in the cache")
        TRACED_LAYER([key_states, value_states], self.name, 2 * self.updates + 1)
        keys, values = self.cache.update(key_states, value_states, self.number)
        self.updates += 1
        TRACED_LAYER([keys, values], self.name, 2 * self.updates)
        return keys, values

    def __getattr__(self, name: str) -> Any:
        _trace_apart(self.name, "it does more with the cache than to update it")


class _Hidden:
    """Stands for the number of the layer that is traced."""

    def _refuse(self, *args: Any) -> Any:
        _trace_apart("", "it looks at its number")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = __neg__ = _refuse
    __index__ = __int__ = __float__ = __bool__ = __hash__ = __str__ = __repr__ = __format__ = _refuse


_HIDDEN = _Hidden()


# What follows is asked by the code above while Dynamo traces it, which takes the answers for constants.


@torch._dynamo.assume_constant_result
def _name_of_kind() -> str:
    """Return the name of the layer that the calling one is equal to, or its own; none if it is traced by itself."""
    try:
        return _find_kind()
    except _NoKind as reason:
        log.debug("a layer is traced by itself: %s", reason)
    except Exception as error:  # another version of Dynamo may be made otherwise
        log.debug("layers are traced one by one: %s: %s", type(error).__name__, error)
    return ""


@torch._dynamo.assume_constant_result
def _paths_of_numbers(name: str) -> str:
    layer = _frame().traced[name].layer
    parts = [path for path, part in layer.named_modules() if _NUMBER in vars(part)]
    return " ".join(f"{path}.{_NUMBER}".removeprefix(".") for path in parts)


@torch._dynamo.assume_constant_result
def _paths_of_tensors(name: str) -> str:
    layer = _frame().traced[name].layer
    return " ".join(path for path, _ in [*layer.named_parameters(), *layer.named_buffers()])


@torch._dynamo.assume_constant_result
def _is_traced(name: str) -> bool:
    return not _frame().traced[name].is_open


@torch._dynamo.assume_constant_result
def _updates(name: str) -> int:
    return _frame().traced[name].updates


@torch._dynamo.assume_constant_result
def _given(name: str) -> str:
    return _frame().traced[name].given


@torch._dynamo.assume_constant_result
def _check_looks(name: str, step: int) -> None:
    """Have layers traced one by one unless the caller's ``values`` look like those of the traced one."""
    values = [_example(value.realize()) for value in _locals()["values"].realize().items]
    if [look_of(value) for value in values] != looks_of_traced(values, name, step):
        _trace_apart(name, "the cache gave it something else")


@torch._dynamo.assume_constant_result
def _close(name: str, given: str, updates: int) -> None:
    """Note what a layer gave, and that it is traced."""
    traced, output = _frame().traced[name], InstructionTranslator.current_tx().output
    traced.given, traced.updates, traced.is_open = given, updates, False
    traced.guards = [guard for guard in output.guards.inner if _is_of(guard.originating_source, traced.source)]
    if "?" in given:
        _trace_apart(name, "it gives more than tensors")
    if not _written(traced.cache) <= traced.written:
        _trace_apart(name, "it writes into what it was not given")


@torch._dynamo.assume_constant_result
def _trace_apart(name: str, reason: str) -> NoReturn:
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
        _NoKind: where it is to be traced by itself.
    """
    output, frame, setting = InstructionTranslator.current_tx().output, _frame(), setting_traced_for()
    if setting is None or not setting.reuse_layers:
        raise _NoKind("equal layers are not looked for")
    if output.current_tx is output.root_tx or any(each.is_open for each in frame.traced.values()):
        raise _NoKind("it is the whole frame, or inside a layer")
    this, positional, named = (_locals()[name].realize() for name in ("self", "args", "kwargs"))
    layer: nn.Module = this.value
    if this.source is None:
        raise _NoKind("the frame made it")
    number = _number_of(layer)
    names = [key.vt.as_python_constant() for key in named.items]
    arguments = [argument.realize() for argument in [*positional.items, *named.items.values()]]
    forms = [_form(argument, number) for argument in arguments]
    if forms.count(_CACHE) > 1:
        raise _NoKind("it is given two caches")
    kind = (*_looks(layer), *names, *forms)
    if (name := frame.kinds.get(kind)) is not None:
        _guard_alike(frame.traced[name], this.source)
        return name
    family = type(layer), _CACHE in forms
    if family in _apart:
        raise _NoKind("layers of this class turned out not to be equal")
    frame.kinds[kind] = name = next(_names)
    cache = next((argument.source for argument, form in zip(arguments, forms, strict=True) if form == _CACHE), None)
    frame.traced[name] = _Traced(name, layer, this.source, cache, family, _written(cache))
    return name


def _number_of(layer: nn.Module) -> int | None:
    """Return the number that a layer and its parts have; None where they have none."""
    numbers = {vars(part)[_NUMBER] for part in layer.modules() if _NUMBER in vars(part)}
    if len(numbers) > 1 or not all(type(number) is int for number in numbers):
        raise _NoKind(f"its parts have several numbers, {numbers}")
    return numbers.pop() if numbers else None


def _form(argument: Any, number: int | None) -> Hashable:
    """Return what arguments of equal layers have in common."""
    if isinstance(argument, TensorVariable):
        return look_of(_example(argument))
    if isinstance(argument, TupleVariable):
        items = [item.realize() for item in argument.items]
        if all(isinstance(item, TensorVariable) for item in items):
            return "tuple", *(look_of(_example(item)) for item in items)
    if isinstance(argument, ConstantVariable) and isinstance(argument.value, _CONSTANTS):
        return type(argument.value), argument.value
    if number is not None and _is_empty_cache(argument, number):
        return _CACHE
    raise _NoKind(f"it is given {argument}")


def _example(argument: Any) -> Tensor:
    value: Any = argument.as_proxy().node.meta["example_value"]
    if type(value) is not FakeTensor:
        raise _NoKind(f"it is given a tensor of a kind of its own, {type(value).__name__}")
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


def _looks(layer: nn.Module) -> Iterator[Hashable]:
    """Yield what equal layers have in common: all but the numbers in their tensors, and their own number."""
    if any(value for name, value in vars(nn.modules.module).items() if name.startswith("_global_") and "hooks" in name):
        raise _NoKind("hooks are registered for all modules")
    for path, part in layer.named_modules():
        state = dict(vars(part))
        tensors, children = state.pop("_parameters") | state.pop("_buffers"), state.pop("_modules")
        state.pop(_NUMBER, None)
        yield path, type(part), tuple(children)
        for name, tensor in tensors.items():
            if tensor is not None and type(tensor) not in (Tensor, nn.Parameter):
                raise _NoKind(f"its {path}.{name} is a {type(tensor).__name__}")
            yield name, None if tensor is None else look_of(tensor)
        for name, value in sorted(state.items()):
            if isinstance(value, Tensor) or ("hook" in name and isinstance(value, dict) and value):
                raise _NoKind(f"its {path} has {name}")
            yield name, type(value), _constant(value)


def _constant(value: Any) -> Hashable:
    """Return what equal attributes have in common; an object that may change is equal to itself only."""
    if isinstance(value, dict):
        return tuple((_constant(key), type(each), _constant(each)) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple((type(each), _constant(each)) for each in value)
    if isinstance(value, functools.partial):
        return _constant(value.func), _constant(value.args), _constant(value.keywords)
    return value if isinstance(value, _CONSTANTS) else id(value)


def _written(cache: Source | None) -> set[Hashable]:
    """Return what the frame has written into so far of all that it did not make itself, but for the cache."""
    effects = InstructionTranslator.current_tx().output.side_effects
    found: set[Hashable] = set()
    for variable in effects.id_to_variable.values():
        is_new = isinstance(variable.mutation_type, AttributeMutationNew | ValueMutationNew)
        if variable.mutation_type is None or is_new or not effects.is_modified(variable):
            continue
        names = set(effects.store_attr_mutations.get(variable, ()))
        if names != {_NUMBER} and not (cache is not None and _is_of(variable.source, cache)):
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

"""Where models make features of pixels and sounds: methods that all of transformers calls by the same names.

A program holds what such a method computes as code of its own, in front of the graph with the decoder: towers read
numbers out of tensors (a video's grid, which images are real), where Dynamo ends a graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_METHODS = ("get_image_features", "get_video_features", "get_audio_features")
# Rotary positions in several axes: made token by token, in Python. The first result has the positions.
_POSITIONS = "get_rope_index"


@dataclass(frozen=True)
class Input:
    """Stands for a tensor: an input of the model by its name, or one that the model made of its inputs by ""."""

    name: str


@dataclass(frozen=True)
class FeatureCall:
    """A call of a method that makes features.

    Attributes:
        module: the name of the module that has the method; "" for the model.
        method: its name.
        args: positional arguments, with an ``Input`` for each tensor.
        kwargs: likewise by keyword.
        result: what it returned, tensors in whatever the model holds them in.
    """

    module: str
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    def takes_others(self) -> bool:
        """Return whether it was given tensors that are no inputs of the model."""
        return Input("") in pytree.tree_leaves((self.args, dict(self.kwargs)))

    def repeat(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Return what the method gives for other inputs."""
        args, kwargs = pytree.tree_map(
            lambda value: inputs[value.name] if isinstance(value, Input) else value, (self.args, dict(self.kwargs))
        )
        return getattr(model.get_submodule(self.module), self.method)(*args, **kwargs)


def watch_features(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[FeatureCall], Tensor | None]:
    """Run a model eagerly, and see how it makes features and positions.

    Returns:
        The calls that make features of inputs alone, one at most for each method; and the rotary positions that the
        model made of the inputs in Python, ``[axes, B, S]`` int64, None where it made none.
    """
    names = {id(value): name for name, value in inputs.items() if isinstance(value, Tensor)}
    seen: dict[tuple[str, str], list[FeatureCall]] = {}
    made: list[Tensor] = []
    depth = 0

    def watching(module: str, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                result = original(*args, **kwargs)
            finally:
                depth -= 1
            if method == _POSITIONS:
                made.append(result[0])
            elif depth == 0:
                shown = pytree.tree_map_only(Tensor, lambda value: Input(names.get(id(value), "")), (args, kwargs))
                call = FeatureCall(module, method, shown[0], shown[1], result)
                seen.setdefault((module, method), []).append(call)
            return result

        return watched

    with _replaced(model, watching, (*_METHODS, _POSITIONS)), torch.no_grad():
        model.forward(**inputs)
    calls = [each[0] for each in seen.values() if len(each) == 1]
    return [call for call in calls if not call.takes_others()], made[0] if made else None


@contextlib.contextmanager
def returning(model: nn.Module, calls: list[FeatureCall], results: Callable[[], list[Any]]) -> Iterator[None]:
    """Let methods return what ``results()`` has for them, in the order of ``calls``, instead of computing it."""
    places = {(call.module, call.method): place for place, call in enumerate(calls)}

    def returned(module: str, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        if (module, method) not in places:
            return original
        place = places[module, method]
        return lambda *args, **kwargs: results()[place]

    with _replaced(model, returned, _METHODS):
        yield


@contextlib.contextmanager
def _replaced(
    model: nn.Module, make: Callable[[str, str, Callable[..., Any]], Callable[..., Any]], methods: tuple[str, ...]
) -> Iterator[None]:
    """Put other functions in the place of methods of a model's modules, for these objects alone."""
    changed: list[tuple[nn.Module, str]] = []
    try:
        for name, module in model.named_modules():
            for method in methods:
                if hasattr(type(module), method):
                    vars(module)[method] = make(name, method, getattr(module, method))
                    changed.append((module, method))
        yield
    finally:
        for module, method in changed:
            vars(module).pop(method, None)

"""Has Dynamo trace a model for this backend, and keeps the pruned graph with all that its inputs and results are."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import SymInt, Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from .. import report
from ..backend.entry import sharp
from ..integrations.recompile_limit import isolated
from ..integrations.transformers import cache_state, features, prepare_model
from ..integrations.transformers.broadcast_masks import broadcasting
from ..integrations.transformers.features import FeatureCall, Input
from ..passes.context import AUX_OUTPUT
from ..passes.errors import CannotPrune
from ..passes.fx.nodes import arguments, example_value
from ..passes.fx.sizes import expression
from .plain import write_plain


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, by its name."""

    name: str


@dataclass(frozen=True)
class Feature:
    """A tensor in what the calls that make features return, counted through all of them."""

    place: int


@dataclass(frozen=True)
class Size:
    """A size of another input of the graph."""

    of: Input | Weight | Feature | Tensor
    dim: int


Source = Input | Weight | Size | Feature | Tensor
"""Where an input of the graph comes from; a tensor that is none of these is a constant."""


@dataclass(frozen=True)
class Captured:
    """A pruned graph, and what it is given and gives.

    Attributes:
        module: the graph, in plain PyTorch.
        sources: of its inputs.
        results: the places of its results, by name: ``logits``, ``kept`` and ``kept_1`` and so on, and the tensors of
            the cache.
        text: the place of the number of text tokens of each row, ``[B]``; None where no row could have too many.
        calls: what makes features, in front of the graph.
        cache: the cache of the example; None where the model makes none.
    """

    module: GraphModule
    sources: tuple[Source, ...]
    results: Mapping[str, int]
    text: int | None
    calls: tuple[FeatureCall, ...]
    cache: Any

    def check_sizes(self, args: Sequence[Any]) -> None:
        """Check that sizes are equal which Dynamo found to be, or fixed where it fixed them: the graph relies on it."""
        seen: dict[Any, Any] = {}
        for node, arg in zip(self.module.graph.find_nodes(op="placeholder"), args, strict=True):
            example = example_value(node)
            if not isinstance(example, Tensor):
                continue
            for known, size in zip(example.shape, arg.shape, strict=True):
                wanted = expression(known)
                if wanted.is_Integer:
                    torch._check(size == int(wanted))
                elif wanted.is_Symbol:
                    torch._check(size == seen.setdefault(wanted, size))


class _Recorder:
    """The inner backend: runs the graph as it is, and keeps it with what it was given and gave."""

    def __init__(self) -> None:
        self.runs: list[tuple[GraphModule, Sequence[Any], Sequence[Any]]] = []

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            results = module(*args)
            self.runs.append((module, args, results))
            return results

        return run


class _Returns:
    """What the calls that make features are to return, where Dynamo sees it come from arguments."""

    value: Any = None


def capture(
    model: nn.Module, inputs: Mapping[str, Any], calls: list[FeatureCall], options: Mapping[str, Any], dynamic: bool
) -> Captured:
    """Trace a model's forward call, pruned.

    Args:
        model: The model.
        inputs: The keyword arguments.
        calls: What makes features: not traced, its results are inputs of the graph.
        options: Those of the backend.
        dynamic: Whether sizes of inputs are symbols.

    Raises:
        CannotPrune: Where the graph can't be pruned, or is not one graph.
    """
    prepare_model(model)
    # Clones: Dynamo makes symbols of the offsets of views.
    leaves, spec = pytree.tree_flatten([call.result for call in calls])
    leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    made, recorder = tensors_in(leaves), _Recorder()
    for value in made:
        torch._dynamo.mark_static(value, value.ndim - 1)
    options = {**options, "inner": recorder, "on_skip": "raise"}
    tensors, returned = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}, _Returns()
    call = _call(model, {name: value for name, value in inputs.items() if name not in tensors}, returned)
    with (
        features.returning(model, calls, lambda: returned.value),
        broadcasting(),
        torch._dynamo.config.patch(specialize_int=True, specialize_float=True),
        report.watch() as graphs,
        torch.no_grad(),
    ):
        compiled = torch.compile(call, backend=sharp, options=options, fullgraph=True, dynamic=dynamic, **isolated())
        try:
            logits, cache = compiled(tensors, pytree.tree_unflatten(leaves, spec))
        except torch._dynamo.exc.Unsupported as error:
            raise CannotPrune(f"the model's call is not one graph: {str(error).splitlines()[0]}") from error
    if not recorder.runs or not any(graph.pruned for graph in graphs):
        raise CannotPrune(graphs[-1].reason if graphs else "no graph was traced")
    module, args, outputs = recorder.runs[-1]
    write_plain(module)
    places = {id(value): place for place, value in enumerate(outputs)}
    results = {name: places[id(value)] for name, value in _results(logits, cache).items()}
    known: dict[int, Any] = {id(value): Feature(place) for place, value in enumerate(made)}
    known |= {id(value): Input(name) for name, value in tensors.items()}
    known |= {id(value): Weight(name) for name, value in (*model.named_parameters(), *model.named_buffers())}
    return Captured(module, _sources(module, args, known), results, _place_of_text(module), tuple(calls), cache)


def _call(model: nn.Module, fixed: Mapping[str, Any], returned: _Returns) -> Callable[..., Any]:
    """Return what Dynamo traces, with code of its own: what Dynamo keeps for it goes when it goes."""
    fixed = {"use_cache": True, **fixed}

    def call(given: dict[str, Any], results: list[Any]) -> Any:
        returned.value = results
        output = model.forward(**given, **fixed)
        logits = getattr(output, "logits", None)
        return output.last_hidden_state if logits is None else logits, cache_in(output)

    function = cast(types.FunctionType, call)
    return types.FunctionType(function.__code__.replace(), globals(), call.__name__, closure=function.__closure__)


def tensors_in(results: Any) -> list[Tensor]:
    """Return the tensors in whatever a model holds them in, in order."""
    return [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]


def cache_in(output: Any) -> Any:
    """Return the cache in what a model returned; None where there is none."""
    cache = getattr(output, "cache", None)
    return getattr(output, "past_key_values", None) if cache is None else cache


def kept_names(kept: Mapping[int, Tensor]) -> dict[int, str]:
    """Name the kept positions of layers: ``kept`` after the last cut, ``kept_1`` and so on after those before."""
    stages = list(dict.fromkeys(id(value) for value in kept.values()))
    names = {stage: f"kept_{number}" for number, stage in enumerate(stages, 1)} | {each: "kept" for each in stages[-1:]}
    return {layer: names[id(value)] for layer, value in kept.items()}


def _results(logits: Tensor, cache: Any) -> dict[str, Tensor]:
    """Return what a program returns, by name."""
    if cache is None:
        return {"logits": logits}
    kept = cache_state.kept_of(cache)
    names = kept_names(kept)
    return {"logits": logits, **{names[layer]: kept[layer] for layer in kept}, **cache_state.tensors_of(cache)}


def _place_of_text(module: GraphModule) -> int | None:
    for place, node in enumerate(arguments(module.graph.output_node())[0]):
        if node.meta.get(AUX_OUTPUT) == "text" and node.meta["example_value"].shape[0] != 1:
            return place
    return None


def _sources(module: GraphModule, args: Sequence[Any], known: Mapping[int, Any]) -> tuple[Source, ...]:
    nodes = module.graph.find_nodes(op="placeholder")
    whole = {node: known.get(id(value), value) for node, value in zip(nodes, args, strict=True)}
    return tuple(_size(node, whole) if isinstance(example_value(node), SymInt) else whole[node] for node in nodes)


def _size(node: Node, whole: Mapping[Node, Any]) -> Size:
    wanted = expression(example_value(node))
    for other, source in whole.items():
        value = example_value(other)
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if expression(size) == wanted:
                return Size(source, dim)
    raise CannotPrune(f"the graph is given {node.name}, a number that is no size of its inputs")

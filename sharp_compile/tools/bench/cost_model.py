"""Counts what a prefill takes, on tensors without data: no model is too large, and no machine too small."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import sdpa_flop_count
from transformers import DynamicCache

import sharp_compile
from sharp_compile.flops import flop_counter
from sharp_compile.options import Config

from . import BenchError
from .decoders import Prompt, Setup, build, inputs

_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
_ATTENTION = {
    F.scaled_dot_product_attention,
    torch.ops.sharp_compile.causal_attention.default,
    torch.ops.sharp_compile.masked_attention.default,
}
_AHEAD = 3
"""Layers after the last cut that are traced; those further on are like the last of these."""


@dataclass(frozen=True)
class Account:
    """What one prefill takes.

    ``flops`` and ``bytes_moved`` are those of matrix products and attention: operations, and what they have to read and
    write at the least. ``kv_bytes`` is what the cache holds after it. ``head_bytes`` is the most that is held at a
    time, beside inputs and weights, up to the last layer, and ``tail_bytes`` in it; the cache is part of both.
    ``square_tensors`` is how many tensors with two axes of S are made.
    """

    sequence_length: int
    pruned_length: int
    flops: int
    bytes_moved: int
    kv_bytes: int
    head_bytes: int
    tail_bytes: int
    square_tensors: int

    @property
    def activation_peak_bytes(self) -> int:
        """The most that is held at a time, beside inputs and weights, if nothing is fused but attention."""
        return max(self.head_bytes, self.tail_bytes)


def account(setup: Setup, visual: int, options: Mapping[str, Any] | None) -> Account:
    """Count a prefill of ``visual`` visual tokens.

    All layers after the last cut are alike, so a few are traced, and one more; what that adds is added for each of the
    others.

    Args:
        setup: the model, and the kind of prompt.
        visual: visual tokens of the prompt.
        options: those of the backend; None for the unpruned model.

    Raises:
        BenchError: where the backend doesn't prune it.
    """
    few = Config.parse(options or {}).cuts[-1].layer + 1 + _AHEAD
    if setup.layers <= few + 1:
        return _traced(setup, visual, options)
    one, more = (_traced(replace(setup, layers=number), visual, options) for number in (few, few + 1))
    added = {
        name: getattr(one, name) + (setup.layers - few) * (getattr(more, name) - getattr(one, name))
        for name in ("flops", "bytes_moved", "kv_bytes", "tail_bytes", "square_tensors")
    }
    return replace(one, **added)


def _traced(setup: Setup, visual: int, options: Mapping[str, Any] | None) -> Account:
    model, given = build(setup, "meta"), inputs(setup, visual, "meta")
    assert given["embeddings"] is not None
    length = given["embeddings"].shape[1]
    attentions = setup.layers + (0 if setup.tower is None else setup.tower.num_hidden_layers)
    counted: list[_Counting] = []

    def count(module: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            counting = _Counting(module, attentions, length)
            counted.append(counting)
            return counting.count(*arguments)

        return run

    torch._dynamo.reset()
    sharp_compile.reset()
    how: dict[str, Any] = {"backend": count, "dynamic": False}
    if options is not None:
        how |= {"backend": "sharp", "options": {**options, "inner": count, "on_skip": "raise"}}
    with torch.no_grad():
        cache = _empty_cache(model, setup.dtype)
        torch.compile(model, **how)(**given, past_key_values=cache)
    if options is not None and not any(report.pruned for report in sharp_compile.reports()):
        raise BenchError("the model ran unpruned")
    layers_of_cache: list[Any] = cache.layers
    held = [tensor for layer in layers_of_cache for tensor in (layer.keys, layer.values)]
    return Account(
        sequence_length=int(layers_of_cache[0].keys.shape[-2]),
        pruned_length=int(layers_of_cache[-1].keys.shape[-2]),
        flops=sum(each.flops for each in counted),
        bytes_moved=sum(each.bytes_moved for each in counted),
        kv_bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
        head_bytes=max(each.head_bytes for each in counted),
        tail_bytes=max(each.tail_bytes for each in counted),
        square_tensors=sum(each.held.squares for each in counted),
    )


def _empty_cache(model: Prompt, dtype: torch.dtype) -> DynamicCache:
    """A cache that holds nothing; one that Dynamo sees being made has tensors that it can't tell from real ones."""
    cache = DynamicCache(config=model.language_model.config)
    nothing = torch.empty(0, dtype=dtype, device="meta")
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.lazy_initialization(nothing, nothing)
    return cache


class _Counting(Interpreter):
    """Runs a graph node by node and counts; attention is one operation that stores no matrix of probabilities."""

    def __init__(self, module: GraphModule, attentions: int, length: int) -> None:
        super().__init__(module)
        self.flops = self.bytes_moved = self.head_bytes = self.tail_bytes = 0
        self.held = _Held(length)
        self.begun, self.attentions = 0, attentions

    def count(self, *arguments: Any) -> Any:
        """Run the whole graph."""
        with flop_counter() as counter, _Moved() as moved, self.held:
            result = self.run(*arguments)
        self.flops += counter.get_total_flops()
        self.bytes_moved += moved.bytes
        return result

    def run_node(self, node: torch.fx.Node) -> Any:
        """Run one node, and notes what is held after it."""
        result = super().run_node(node)
        if self.begun < self.attentions - 1:
            self.head_bytes = max(self.head_bytes, self.held.peak)
        else:
            self.tail_bytes = max(self.tail_bytes, self.held.peak)
        self.held.peak = self.held.bytes
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Attention is counted as a whole, and so is the walk of the deduplication, which depends on the data."""
        if target in _ATTENTION:
            query, key, value = args[:3]
            self.begun += 1
            self.flops += int(sdpa_flop_count(query.shape, key.shape, value.shape))
            result = query.new_empty((*query.shape[:-1], value.shape[-1]))
            self.bytes_moved += _bytes(query, key, value, result)
            return result
        return super().call_function(target, args, kwargs)


class _Moved(TorchDispatchMode):
    """Adds up what matrix products read and write."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _PRODUCTS:
            self.bytes += _bytes(*args, result)
        return result


class _Held(TorchDispatchMode):
    """How many bytes the tensors hold that were made in it and are still there, and the most that it ever was.

    ``squares`` counts those with two axes of ``length``.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.bytes = self.peak = self.squares = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (place := _storage(leaf)) not in given | self.known:
                size = leaf.untyped_storage().nbytes()
                self.known.add(place)
                self.bytes += size
                self.squares += sum(axis == self.length for axis in leaf.shape) > 1
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(leaf.untyped_storage(), self._free, place, size)
        return result

    def _free(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.bytes -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(*values: Any) -> int:
    return sum(math.prod(value.shape) * value.element_size() for value in values if isinstance(value, Tensor))

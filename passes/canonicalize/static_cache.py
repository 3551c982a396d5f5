"""Preallocated (static) caches, written so that they follow the length of the sequence.

A static cache holds keys in a buffer of L slots. In a prefill it is made in the graph:

    buffer = zeros(B, H, L, D);  buffer.index_copy(2, arange(S) + length, keys);  length.add_(S)

with ``length`` an integer tensor of the cache, of one element, which is 0 there. The same is ``pad(keys, L - S)`` and
``length.add_(keys.size(2))``, and that form is right for any number of keys: after a cut the buffer gets
S' + (L - S) slots, with as much slack as before.

Each kind of cache is a function that recognises its writes, ``register_cache_write``; docs/extending/cache.md adds one.

A layer with a sliding window is another thing: once as many positions were seen as it has slots, it loses its
oldest one for each that comes. Those that it holds may be far apart after a cut, and all still in the window. So its
buffer is handed back as long as it was: nothing is lost before the window is full of positions that were kept.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt
from torch.fx import Graph, Node

from ..analysis.attention import Attention
from ..fx.emit import Emitter
from ..fx.nodes import arguments, example_tensor, example_value, is_one_number
from ..fx.sizes import expression
from ..held_positions import asks_for_positions

# Nodes by which a key head becomes those of several query heads.
_REPEATED = {operator.getitem, "expand", "reshape", "view", "contiguous", "repeat_interleave", "unsqueeze"}
_ADD = {operator.add, torch.add, "add"}


@dataclass(frozen=True)
class CacheWrite:
    """A write of S new tokens at the beginning of an empty buffer.

    Attributes:
        buffer: ``[..., L, D]`` of the source's dtype, in front of the write and read by nothing else.
        source: what is written, ``[..., S, D]``.
        axis: the axis of the tokens, the last but one, counted from the front.
        count: a tensor of one element that counts the tokens in the cache, and is 0 here; None where there is none.
        slack: ``[..., L - S, D]``, what is after the tokens where the buffer is made of both: ``buffer`` is the node
            itself then, which has no size in front of it.
    """

    buffer: Node
    source: Node
    axis: int
    count: Node | None = None
    slack: Node | None = None


MatchWrite = Callable[[Node, Node], CacheWrite | None]

_WRITES: list[MatchWrite] = []


def register_cache_write(match: MatchWrite) -> MatchWrite:
    """Add a kind of cache: a function that recognises how its keys and values are written.

    It is given a node and the embeddings ``[B, S, C]`` that show S, and returns the write that the node is, or None. It
    must be sure that the buffer is new (made in this graph) and that the write begins at its first slot: one that came
    from outside may hold tokens.
    """
    _WRITES.append(match)
    return match


@dataclass(frozen=True)
class CacheSlack:
    """The buffers of the preallocated caches of a graph: tokens, and after them slots that are not used yet.

    All that is to be known of such slots is asked here; the prover knows them as padded lengths.

    Attributes:
        buffers: the nodes of the padded keys and values ``[..., L, D]``, with what is padded, ``[..., S, D]``.
        counts: tensors of one number that count the tokens in a cache, and are 0 in front of the writes.
    """

    buffers: Mapping[Node, Node]
    counts: frozenset[Node] = frozenset()

    @property
    def padded_lengths(self) -> list[int | SymInt]:
        """Sizes of axes that hold the S tokens and, after them, slack."""
        return [example_value(buffer).shape[-2] for buffer in self.buffers]

    def without(self, attention: Attention) -> Attention:
        """``attention`` with the keys that were put into a buffer instead of the buffer; its mask may be wider."""
        key: Any = attention.key
        while isinstance(key, Node):
            if key in self.buffers:
                return replace(attention, key=arguments(key)[0])
            key = key.args[0] if key.target in _REPEATED else None
        return attention

    def moving_buffers(self, graph: Graph) -> list[Node]:
        """Return those that belong to a layer that moves on (a sliding window)."""
        asking = [node for node in asks_for_positions(graph) if node.args[2]]
        moving = {source for node in asking for source in node.args[:2]}
        return [buffer for buffer, source in self.buffers.items() if source in moving]

    @staticmethod
    def restore(emit: Emitter, buffer: Node, dropped: int | Node) -> None:
        """Hand back a buffer as long as it was, once its graph is rewritten for ``dropped`` tokens less."""
        *after, _ = arguments(buffer)[1]
        output = emit.graph.output_node()
        with emit.before(output):
            restored = emit.graph.call_function(F.pad, (buffer, [*after, dropped]))
        output.replace_input_with(buffer, restored)


def find_slack(emit: Emitter, embeddings: Node) -> CacheSlack:
    """Rewrite the writes into caches that a graph makes (``passes.canonicalize.functionalize`` went before).

    A buffer that came in from outside is left as it is: it may hold tokens.

    Args:
        emit: for the graph.
        embeddings: ``[B, S, C]``, the node that shows S.
    """
    graph = emit.graph
    padded: dict[Node, Node] = {}
    empty: set[Node] = set()
    for node in list(graph.nodes):
        write = next((found for match in _WRITES if (found := match(node, embeddings)) is not None), None)
        if write is None:
            continue
        if write.count is not None and write.count not in empty:
            empty.add(write.count)
            _check_empty(graph, write.count)
        with emit.before(node):
            slack = _slack(emit, write, embeddings)
            after = [0, 0] * (example_value(write.source).ndim - 1 - write.axis)
            pad = graph.call_function(F.pad, (write.source, [*after, 0, slack]))
            pad.meta = dict(node.meta)
        padded[pad] = write.source
        node.replace_all_uses_with(pad)
        graph.erase_node(node)
        for user in list(write.count.users) if write.count is not None else ():
            _count(graph, user, write.source, write.axis)
    return CacheSlack(padded, frozenset(empty))


def _slack(emit: Emitter, write: CacheWrite, embeddings: Node) -> int | Node:
    if write.slack is not None:
        return emit.size(write.slack, write.axis)
    return emit.arithmetic(operator.sub, emit.size(write.buffer, write.axis), emit.size(embeddings, 1))


@register_cache_write
def index_copy(node: Node, embeddings: Node) -> CacheWrite | None:
    """``zeros(...).index_copy(axis, arange(S) + count, source)``, which transformers writes."""
    if node.target not in ("index_copy", torch.index_copy):
        return None
    buffer, axis, places, source = arguments(node)
    if not isinstance(buffer, Node) or buffer.target is not torch.zeros or len(buffer.users) != 1:
        return None
    parts = arguments(places) if isinstance(places, Node) and places.target in _ADD else ()
    aranges = [part for part in parts if isinstance(part, Node) and part.target is torch.arange]
    counts = [part for part in parts if part not in aranges and is_one_number(part)]
    if len(parts) != 2 or len(aranges) != 1 or len(counts) != 1:
        return None
    value, numbers = example_tensor(source), example_tensor(aranges[0])
    if value is None or numbers is None:
        return None
    lengths = (numbers.shape[0], value.shape[axis], example_value(embeddings).shape[1])
    if len({expression(size) for size in lengths}) != 1:
        return None
    # `arange` with one argument counts from 0 in steps of 1.
    return CacheWrite(buffer, source, axis, counts[0]) if len(arguments(aranges[0])) == 1 else None


def _check_empty(graph: Graph, length: Node) -> None:
    """Have a run fail if the cache of ``length`` says that it holds tokens: transformers makes no such cache."""
    with graph.inserting_after(length):
        is_empty = graph.call_function(operator.eq, (length, 0))
    is_empty.meta["example_value"] = example_value(length) == 0
    with graph.inserting_after(is_empty):
        graph.call_function(torch._assert_async, (is_empty, "a new static cache says that it holds tokens"))


def _count(graph: Graph, user: Node, source: Node, axis: int) -> None:
    """Let ``length.add_(S)`` count what is written."""
    if user.target != "add_" or (isinstance(user.args[1], Node) and user.args[1].target == "size"):
        return
    size: Any = example_value(source).shape[axis]
    if expression(example_value(user.args[1])) == expression(size):
        with graph.inserting_before(user):
            count = graph.call_method("size", (source, axis))
            count.meta["example_value"] = size
        user.args = (user.args[0], count)

"""Preallocated (static) caches, written so that they follow the length of the sequence.

A static cache holds keys in a buffer with room for L positions. In a prefill it is made in the graph:

    buffer = zeros(B, H, L, D);  buffer.index_copy(2, arange(S) + length, keys);  length.add_(S)

with ``length`` an integer tensor of the cache, of one element, which is 0 there. The same is ``pad(keys, L - S)`` and
``length.add_(keys.size(2))``, and that form is right for any number of keys: behind a cut the buffer gets
S' + (L - S) positions, as much room as before.

A layer with a sliding window is another thing: once as many positions were seen as it has room for, it loses its
oldest one for each that comes. Those that it holds may be far apart behind a cut, and all still in the window. So its
buffer is handed back as long as it was: nothing is lost before the window is full of positions that were kept.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from ..analysis.attention import Attention
from ..fx.emit import Emitter
from ..fx.nodes import arguments, example, example_tensor, is_one_number
from ..fx.sizes import expression
from ..held_positions import asks_for_positions

# Nodes by which a key head becomes those of several query heads.
_REPEATED = {operator.getitem, "expand", "reshape", "view", "contiguous", "repeat_interleave", "unsqueeze"}
_ADD = {operator.add, torch.add, "add"}


def follow_length(emit: Emitter, embeddings: Node) -> dict[Node, Node]:
    """Rewrites the writes into caches that a graph makes (`passes.canonicalize.functionalize` went before).

    A buffer that came in from outside is left as it is: it may hold tokens.

    Args:
        emit: for the graph.
        embeddings: ``[B, S, C]``, the node that shows S.

    Returns:
        The nodes of the padded keys and values ``[..., L, D]``, with what is padded, ``[..., S, D]``.
    """
    graph = emit.graph
    padded: dict[Node, Node] = {}
    empty: set[Node] = set()
    for node in list(graph.nodes):
        if node.target not in ("index_copy", torch.index_copy) or (found := _write(node, embeddings)) is None:
            continue
        axis, length, source = found
        if length not in empty:
            empty.add(length)
            _check_empty(graph, length)
        with emit.before(node):
            buffer = arguments(node)[0]
            room = emit.arithmetic(operator.sub, emit.size(buffer, axis), emit.size(embeddings, 1))
            behind = [0, 0] * (example(source).ndim - 1 - axis)
            pad = graph.call_function(F.pad, (source, [*behind, 0, room]))
            pad.meta = dict(node.meta)
        padded[pad] = source
        node.replace_all_uses_with(pad)
        graph.erase_node(node)
        for user in list(length.users):
            _count(graph, user, source, axis)
    return padded


def moving_buffers(graph: Graph, buffers: Mapping[Node, Node]) -> list[Node]:
    """Those of the buffers that `follow_length` found which belong to a layer that moves on (a sliding window)."""
    asking = [node for node in asks_for_positions(graph) if node.args[2]]
    moving = {source for node in asking for source in node.args[:2]}
    return [buffer for buffer, source in buffers.items() if source in moving]


def restore_length(emit: Emitter, buffer: Node, dropped: int | Node) -> None:
    """Hand back a buffer as long as it was, once its graph is rewritten for `dropped` tokens less."""
    *behind, _ = arguments(buffer)[1]
    output = emit.graph.output_node()
    with emit.before(output):
        restored = emit.graph.call_function(F.pad, (buffer, [*behind, dropped]))
    output.replace_input_with(buffer, restored)


def scored_attention(attention: Attention, buffers: Container[Node]) -> Attention:
    """`attention` with the keys that were put into a buffer instead of the buffer; its mask may be wider than those."""
    key: Any = attention.key
    while isinstance(key, Node):
        if key in buffers:
            return replace(attention, key=arguments(key)[0])
        key = key.args[0] if key.target in _REPEATED else None
    return attention


def _write(node: Node, embeddings: Node) -> tuple[int, Node, Node] | None:
    """The axis, the tensor of the length and the source of a write at the end of an empty cache; else None."""
    buffer, axis, places, source = arguments(node)
    if not isinstance(buffer, Node) or buffer.target is not torch.zeros or len(buffer.users) != 1:
        return None
    parts = arguments(places) if isinstance(places, Node) and places.target in _ADD else ()
    counts = [part for part in parts if isinstance(part, Node) and part.target is torch.arange]
    lengths = [part for part in parts if part not in counts and is_one_number(part)]
    if len(parts) != 2 or len(counts) != 1 or len(lengths) != 1:
        return None
    value, count = example_tensor(source), example_tensor(counts[0])
    if value is None or count is None:
        return None
    lengths_of = {expression(size) for size in (count.shape[0], value.shape[axis], example(embeddings).shape[1])}
    if len(lengths_of) != 1:
        return None
    # `arange` with one argument counts from 0 in steps of 1.
    return (axis, lengths[0], source) if len(arguments(counts[0])) == 1 else None


def _check_empty(graph: Graph, length: Node) -> None:
    """Has a run fail if the cache of `length` says that it holds tokens: transformers makes no such cache."""
    with graph.inserting_after(length):
        is_empty = graph.call_function(operator.eq, (length, 0))
    is_empty.meta["example_value"] = example(length) == 0
    with graph.inserting_after(is_empty):
        graph.call_function(torch._assert_async, (is_empty, "a new static cache says that it holds tokens"))


def _count(graph: Graph, user: Node, source: Node, axis: int) -> None:
    """Lets ``length.add_(S)`` count what is written."""
    if user.target != "add_" or (isinstance(user.args[1], Node) and user.args[1].target == "size"):
        return
    size: Any = example(source).shape[axis]
    if expression(example(user.args[1])) == expression(size):
        with graph.inserting_before(user):
            count = graph.call_method("size", (source, axis))
            count.meta["example_value"] = size
        user.args = (user.args[0], count)

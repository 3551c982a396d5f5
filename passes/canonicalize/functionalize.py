"""Turns writes into tensors of the graph into new tensors, so that the edges of the graph show the data flow.

A node such as ``buffer.index_copy_(2, places, keys)`` or ``hidden[mask] = values`` changes what later users of
its first argument read, without an edge from it to them. The other passes follow edges. This one gives
the written tensor a node of its own and hands that to all later users.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..fx.nodes import (
    IN_PLACE,
    arguments,
    example_tensor,
    example_value,
    is_hidden_states,
    is_vmapped,
    storage_of,
    writes_into_first,
)
from ..fx.sizes import expression

_ARITHMETIC = ("add", "sub", "mul", "div")
_METHODS = (*_ARITHMETIC, "masked_fill", "masked_scatter", "index_copy", "index_add", "index_put", "scatter", "clamp")


def make_functional(graph: Graph, source: Node) -> None:
    """Rewrite each write of data computed from ``source`` as a new tensor, where that is surely the same.

    It is left as it is where the written tensor came in from outside (the write is to be seen there), where a
    view of a part of it is read later, and where the operator is not known.
    """
    dataflow = {source}
    order = {node: place for place, node in enumerate(graph.nodes)}
    aliases: dict[int, list[Node]] = {}
    for node in list(graph.nodes):
        value = example_tensor(node)
        if node is not source and dataflow.intersection(node.all_input_nodes):
            dataflow.add(node)
            new = _functional(graph, node, aliases, order)
            if new is not None:
                dataflow.add(new)
                node, order[new] = new, order[node]
        if value is not None and not is_vmapped(value):
            aliases.setdefault(storage_of(value), []).append(node)


def make_injections_functional(graph: Graph) -> None:
    """Rewrite each write into hidden states ``[B, S, C]`` as a new tensor, where that is surely the same.

    A write into hidden states that came in from outside is to be seen there: it stays, and what is read from them later
    on is the new tensor.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    aliases: dict[int, list[Node]] = {}
    for node in list(graph.nodes):
        value = example_tensor(node)
        if writes_into_first(node) and isinstance(target := arguments(node)[0], Node) and is_hidden_states(target):
            new = _functional(graph, node, aliases, order, outside=True)
            if new is not None:
                node, order[new], value = new, order[node], example_tensor(new)
        if value is not None and not is_vmapped(value):
            aliases.setdefault(storage_of(value), []).append(node)


def _functional(
    graph: Graph, node: Node, aliases: dict[int, list[Node]], order: dict[Node, int], outside: bool = False
) -> Node | None:
    """Put a new tensor in the place of the write ``node``; None where ``node`` is none, or stays.

    With ``outside``, a write into an input stays beside the new tensor, if it is the last.
    """
    target = next(iter(arguments(node)), None)
    value = example_tensor(target)
    known = _as_new(node)
    if known is None or value is None or is_vmapped(value):
        return None
    same = aliases[storage_of(value)]
    read_later = [other for other in same if any(order[user] > order[node] for user in other.users)]
    is_outside = any(other.op in ("placeholder", "get_attr") for other in same)
    rewritten = any(order[user] > order[node] and writes_into_first(user) for other in same for user in other.users)
    if (is_outside and (rewritten or not outside)) or not all(
        _is_whole(example_tensor(other), value) for other in read_later
    ):
        return None
    kind, function, args = known
    with graph.inserting_before(node):
        new = graph.create_node(kind, function, args, dict(node.kwargs))
        new.meta = dict(node.meta) | {"example_value": value}
        computes = node.target in IN_PLACE or str(node.target)[:-1] in _ARITHMETIC
        if computes and torch.result_type(value, example_value(args[1])) != value.dtype:
            new = graph.call_method("to", (new, value.dtype))
            new.meta = dict(node.meta) | {"example_value": value}
    for other in [*read_later, node]:
        other.replace_all_uses_with(new, delete_user_cb=lambda user: order.get(user, -1) > order[node])
    if not is_outside:
        graph.erase_node(node)
    return new


def _as_new(node: Node) -> tuple[str, Any, tuple[Any, ...]] | None:
    """The kind, the target and the arguments of a node that gives what `node` writes; None where it is no write."""
    target, *rest = arguments(node) or (None,)
    if node.target is operator.setitem:
        index, value = rest
        indices = list(index) if isinstance(index, tuple) else [index]
        while indices[-1:] == [slice(None)]:
            indices.pop()
        into, of = example_tensor(target), example_tensor(value)
        if (sliced := _as_slice(indices, into, of)) is not None:
            return "call_function", torch.ops.aten.slice_scatter.default, (target, value, *sliced)
        by_tensors = bool(indices) and all(example_tensor(each) is not None for each in indices)
        if by_tensors and into is not None and of is not None and into.dtype == of.dtype:
            return "call_function", torch.ops.aten.index_put.default, (target, indices, value)
        return None
    if node.target in IN_PLACE and example_tensor(target) is not None:
        return "call_function", IN_PLACE[node.target], (target, *rest)
    if node.target == "copy_":
        return "call_function", torch.ops.aten.copy.default, (target, *rest)
    if node.op == "call_method" and writes_into_first(node) and str(node.target)[:-1] in _METHODS:
        return "call_method", str(node.target)[:-1], (target, *rest)
    return None


def _as_slice(indices: list[Any], into: Tensor | None, of: Tensor | None) -> tuple[int, Any, Any] | None:
    """Return the axis and the bounds of ``into[:, a:b] = of``, where that takes one slice and all of `of` as it is."""
    if into is None or of is None or into.dtype != of.dtype or into.ndim != of.ndim or not indices:
        return None
    *whole, last = indices
    if any(each != slice(None) for each in whole) or not isinstance(last, slice) or last.step not in (None, 1):
        return None
    axis = len(whole)
    sizes, expected = [expression(size) for size in of.shape], [expression(size) for size in into.shape]
    bounds = [
        0 if last.start is None else example_value(last.start),
        last.stop if last.stop is None else example_value(last.stop),
    ]
    start, stop = (
        expected[axis]
        if bound is None
        else expression(bound) + (expected[axis] if expression(bound).is_negative else 0)
        for bound in bounds
    )
    expected[axis] = stop - start
    return (axis, 0 if last.start is None else last.start, last.stop) if sizes == expected else None


def _is_whole(value: Tensor | None, of: Tensor) -> bool:
    """Return whether ``value`` is the same elements in the same order: no view of a part."""
    if value is None or value is of:
        return True

    def layout(tensor: Tensor) -> list[Any]:
        return [expression(size) for size in (*tensor.shape, *tensor.stride(), tensor.storage_offset())]

    return layout(value) == layout(of)

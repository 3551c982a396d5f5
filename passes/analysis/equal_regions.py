"""Finds layers of a graph that compute the same on other operands: of a decoder, or of a tower.

No name of a module is looked at. Hidden states enter a layer where its attention is added to them later on. A layer is
what depends on the states that enter it and not on those that enter the next. So it is convex (no path leaves it and
comes back), and masks, rotary tables and lengths, which depend on neither, stay outside and are operands.

Two layers are equal if their nodes are the same operators in the same order, with the same constants, on each other's
results and on operands of the same shapes, strides and types, and give values of the same.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import SymInt, Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_flatten

from ..fx.nodes import (
    call_target,
    example_value,
    fake_like,
    flatten_args,
    is_hidden_states,
    name_of,
    on_fakes,
    storage_of,
    unflatten_args,
    writes_into_first,
)
from ..fx.sizes import expression
from .attention import Attention, find_attention
from .dataflow import reached_from

_RANDOM = ("rand", "normal_", "bernoulli", "uniform_", "exponential_", "multinomial", "poisson", "gumbel")
"""What the names of operators that draw random numbers have in them."""


@dataclass(frozen=True)
class Region:
    """A convex part of a graph.

    ``nodes`` are in the order of the graph, ``operands`` those outside that they read, in the order in which they do,
    and ``results`` those of the nodes that are read outside, in the order of the graph.
    """

    nodes: tuple[Node, ...]
    operands: tuple[Node, ...]
    results: tuple[Node, ...]


def find_equal_regions(graph: Graph) -> list[list[Region]]:
    """Return the kinds of layers that a graph has more than one of: for each the regions, in the order of the graph."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    kinds: dict[Hashable, list[Region]] = {}
    for forms in _layers(_inputs_of_layers(graph, place), place):
        region = next((region for nodes in forms if (region := _region(nodes, place)) is not None), None)
        if region is not None:
            kinds.setdefault(_signature(region), []).append(region)
    return [regions for regions in kinds.values() if len(regions) > 1 and not _gives_views(regions[0])]


def count_distinct_layers(graph: Graph) -> int:
    """Return how many layers a graph has that are equal to none before them."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    repeated = sum(len(regions) - 1 for regions in find_equal_regions(graph))
    return len(_inputs_of_layers(graph, place)) - repeated


def _layers(inputs: list[Node], place: dict[Node, int]) -> Iterator[list[set[Node]]]:
    """Yield the nodes of each layer up to each end at which another looks alike, the last end first."""
    forms = [
        [(nodes, _shape(nodes)) for nodes in _up_to_each_state(start, end, place)]
        for start, end in zip(inputs, [*inputs[1:], None], strict=False)
    ]
    known = Counter(shape for each in forms for _, shape in each)
    for each in forms:
        yield sorted((nodes for nodes, shape in each if known[shape] > 1), key=len, reverse=True)


def _inputs_of_layers(graph: Graph, place: dict[Node, int]) -> list[Node]:
    """Return the hidden states that enter layers: what is added to that which is computed from them by attention."""
    found: dict[Node, None] = {}
    for attention in find_attention(graph):
        node = _first_sum(attention, place)
        if node is not None:
            found[node] = None
    return sorted(found, key=place.__getitem__)


def _first_sum(attention: Attention, place: dict[Node, int]) -> Node | None:
    """Return the hidden states that the queries are of, and that something computed from the output is added to."""
    waiting, seen = [(place[attention.output], attention.output)], {attention.output}
    while waiting:
        _, node = heapq.heappop(waiting)
        if node is not attention.output and is_hidden_states(node):
            for each in node.all_input_nodes:
                if is_hidden_states(each) and each not in seen and _depends_on(attention.query, each, place):
                    return each
        for user in node.users:
            if user not in seen:
                seen.add(user)
                heapq.heappush(waiting, (place[user], user))
    return None


def _depends_on(node: Node, earlier: Node, place: dict[Node, int]) -> bool:
    """Return whether a node is computed from another one; only what is between them is looked at."""
    first = place[earlier]
    return earlier in reached_from([node], lambda each: [up for up in each.all_input_nodes if place[up] >= first])


def _up_to_each_state(start: Node, end: Node | None, place: dict[Node, int]) -> Iterator[set[Node]]:
    """Yield what depends on ``start`` and not on hidden states after it, for each that all goes through to ``end``.

    ``end`` comes first; None is what is computed last.
    """
    after = reached_from(start.users, lambda node: [] if node is end else node.users)
    after = {node for node in after if node.op != "output"}
    if end is not None:
        if end not in after:
            return
        if any(place[node] > place[end] for node in after):
            after -= reached_from(end.users, lambda node: node.users)
    inside = nx.DiGraph()
    inside.add_edges_from(
        (parent, node) for node in after for parent in node.all_input_nodes if parent is start or parent in after
    )
    tensors = [node for node in after if isinstance(example_value(node), Tensor)]
    if not tensors:
        return
    parent = nx.immediate_dominators(inside, start)
    node = end if end is not None else max(tensors, key=place.__getitem__)
    while node is not start:
        if is_hidden_states(node):
            yield after - reached_from(node.users, lambda each: [user for user in each.users if user in after])
        node = parent[node]


def _shape(nodes: set[Node]) -> Hashable:
    """Return what equal segments have in common, whatever the order of their nodes."""
    return frozenset(Counter((node.op, str(node.target)) for node in nodes).items())


def _region(nodes: set[Node], place: dict[Node, int]) -> Region | None:
    """Return nodes as a region that can become one call; None where they can't.

    The call stands where the last of them stood, so nothing outside may read a result before. Numbers that are read
    outside, such as lengths, can't come out of a call; and the same code would draw the same random numbers. What
    writes into tensors stays where it stood: nothing may lie between its nodes.
    """
    ordered = sorted(nodes, key=place.__getitem__)
    last = place[ordered[-1]]
    if last - place[ordered[0]] >= len(ordered) and any(node.args and writes_into_first(node) for node in ordered):
        return None
    operands: dict[Node, None] = {}
    results = []
    for node in ordered:
        if node.op not in ("call_function", "call_method") or _may_be_random(node):
            return None
        operands |= dict.fromkeys(parent for parent in node.all_input_nodes if parent not in nodes)
        outside = [user for user in node.users if user not in nodes]
        if outside:
            if not isinstance(example_value(node), Tensor) or min(place[user] for user in outside) < last:
                return None
            results.append(node)
    return Region(tuple(ordered), tuple(operands), tuple(results))


def _gives_views(region: Region) -> bool:
    """Return whether a result is in the memory of an operand, which a call can't give: it is run on examples."""
    values = {node: example_value(node) for node in region.operands}
    with on_fakes(list(values.values())) as mode:
        values = {node: fake_like(value, mode) for node, value in values.items()}
        given = {storage_of(value) for value in values.values() if isinstance(value, Tensor)}
        for node in region.nodes:
            leaves = [values[leaf] if isinstance(leaf, Node) else leaf for leaf in flatten_args(node)]
            values[node] = call_target(node, *unflatten_args(node, leaves))
    return any(storage_of(values[node]) in given for node in region.results)


def _may_be_random(node: Node) -> bool:
    """Return whether a node may draw random numbers: by its name, unless it says that it does not."""
    if "dropout" in name_of(node):
        # (input, p=0.5, training=True, inplace=False)
        share, training = (
            node.kwargs.get(name, node.args[place] if len(node.args) > place else True)
            for name, place in (("p", 1), ("training", 2))
        )
        return bool(share and training)
    if "attention" in name_of(node):
        return bool(node.kwargs.get("dropout_p", node.args[4] if len(node.args) > 4 else 0.0))
    return any(word in name_of(node) for word in _RANDOM)


def _signature(region: Region) -> Hashable:
    """Return what two regions have in common if they compute the same."""
    names: dict[Node, Hashable] = {node: ("operand", number) for number, node in enumerate(region.operands)}
    names |= {node: ("node", number) for number, node in enumerate(region.nodes)}

    def of(node: Node) -> Hashable:
        leaves = flatten_args(node)
        form = unflatten_args(node, [_Leaf()] * len(leaves))
        return repr(form), tuple(names[leaf] if isinstance(leaf, Node) else _constant(leaf) for leaf in leaves)

    return (
        tuple(_value(node) for node in region.operands),
        tuple((node.op, node.target, of(node), _value(node)) for node in region.nodes),
        tuple(names[node] for node in region.results),
    )


class _Leaf:
    """Stands for any argument where only the form of arguments matters."""

    def __repr__(self) -> str:
        return "_"


def _constant(leaf: Any) -> Hashable:
    """Return a constant with its type, since 1, 1.0 and True are equal; one without a hash is equal to itself only."""
    return type(leaf), leaf if isinstance(leaf, Hashable) else id(leaf)


def _value(node: Node) -> Hashable:
    """Return what code is made for of an example value."""
    leaves, structure = tree_flatten(example_value(node))
    return str(structure), tuple(_leaf(leaf) for leaf in leaves)


def _leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        sizes = tuple(expression(size) for size in (*leaf.shape, *leaf.stride()))
        return type(leaf), leaf.dtype, leaf.device, leaf.ndim, sizes, leaf.requires_grad
    if isinstance(leaf, SymInt):
        return SymInt, expression(leaf)
    return _constant(leaf)

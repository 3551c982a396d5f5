"""The flow of data through a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import networkx as nx
import torch
from torch.fx import Graph, Node

from ..errors import CannotPrune


def build_dataflow(graph: Graph, source: Node) -> nx.DiGraph:
    """Return the nodes that hold data computed from ``source``, with an edge from each node to each user.

    Lengths are not data: an edge through a node that holds no tensor (a size) is left out. Raises ``CannotPrune`` where
    what a node holds isn't told, since the data may go on after it.
    """
    dataflow = nx.DiGraph()
    dataflow.add_node(source)
    for node in graph.nodes:
        if (
            "example_value" not in node.meta
            and node.users
            and any(parent in dataflow for parent in node.all_input_nodes)
        ):
            raise CannotPrune(f"the graph has no example value of {node}, through which the features go")
        if node.op != "output" and node is not source and _holds_tensor(node):
            dataflow.add_edges_from((parent, node) for parent in node.all_input_nodes if parent in dataflow)
    return dataflow


def dominator_chain(dataflow: nx.DiGraph, order: dict[Node, int], sources: tuple[Node, ...]) -> list[Node]:
    """Return the nodes that all data after `sources` goes through: the dominators of what is computed last from it."""
    root = object()
    downstream = nx.DiGraph(
        dataflow.subgraph(set(sources).union(*(nx.descendants(dataflow, source) for source in sources)))
    )
    sink = max(downstream, key=order.__getitem__)
    downstream.add_edges_from((root, source) for source in sources)
    parent = nx.immediate_dominators(downstream, root)
    spine = [sink]
    while parent[spine[-1]] is not root:
        spine.append(parent[spine[-1]])
    return spine[::-1]


def reached_from(starts: Iterable[Node], step: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Return all nodes that lead on from ``starts`` by ``step``, these included."""
    reached: set[Node] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(step(node))
    return reached


def _holds_tensor(node: Node) -> bool:
    leaves = torch.utils._pytree.tree_leaves(node.meta.get("example_value"))
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves)

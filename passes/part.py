"""Takes a part out of a graph: what computes some of its values, and no more."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node

from .nodes import example_tensor, is_vmapped, storage, writes_into_first


def part_of(module: GraphModule, results: Sequence[int | Node]) -> GraphModule | None:
    """A graph with all inputs of another one, that only computes some values of it.

    Returns:
        A module that returns a tuple of the values; None where a write into a tensor might have a part in them.
    """
    needed: set[Node] = set()
    waiting = [result for result in results if isinstance(result, Node)]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    written = [example_tensor(node.args[0]) for node in module.graph.nodes if node.args and writes_into_first(node)]
    memory = {storage(value) for value in written if value is not None and not is_vmapped(value)}
    values = [example_tensor(node) for node in needed]
    if any(value is not None and not is_vmapped(value) and storage(value) in memory for value in values):
        return None
    graph, copies = Graph(), dict[Node, Node]()
    for node in module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[result] if isinstance(result, Node) else result for result in results))
    return GraphModule(module, graph)

"""Takes a part out of a graph: what computes some of its values, and no more."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node

from .nodes import ancestors, example_tensor, is_vmapped, storage_of, writes_into_first


def part_of(module: GraphModule, results: Sequence[int | Node]) -> GraphModule | None:
    """Return a graph with all inputs of another one, that only computes some values of it.

    Returns:
        A module that returns a tuple of the values; None where a write into a tensor might have a part in them.
    """
    needed = ancestors(*(result for result in results if isinstance(result, Node)))
    if any(is_vmapped(value) for node in needed if (value := example_tensor(node)) is not None):
        # Nothing reads these; what is between them runs for each element of an axis.
        needed = ancestors(*needed, *filter(_nests_vmap, module.graph.nodes))
    written = [example_tensor(node.args[0]) for node in module.graph.nodes if node.args and writes_into_first(node)]
    memory = {storage_of(value) for value in written if value is not None and not is_vmapped(value)}
    values = [example_tensor(node) for node in needed]
    if any(value is not None and not is_vmapped(value) and storage_of(value) in memory for value in values):
        return None
    graph, copies = Graph(), dict[Node, Node]()
    inputs = module.graph.find_nodes(op="placeholder")
    for node in [*inputs, *(node for node in needed if node.op != "placeholder")]:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[result] if isinstance(result, Node) else result for result in results))
    return GraphModule(module, graph)


def _nests_vmap(node: Node) -> bool:
    """Return whether a node begins or ends a part of a graph that ``torch.vmap`` runs for each element."""
    return str(getattr(node.target, "__name__", node.target)) in ("_vmap_increment_nesting", "_vmap_decrement_nesting")

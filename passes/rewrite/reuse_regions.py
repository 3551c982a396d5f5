"""Makes equal layers of a graph calls of one subgraph, which Inductor compiles once."""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, GraphModule, Node

from ..analysis.equal_regions import Region, find_equal_regions
from ..canonicalize.single_parts import write_single_parts
from ..fx.nodes import copy_of, example_value, write_code


def reuse_regions(module: GraphModule) -> GraphModule | None:
    """Return a copy of a graph in which equal layers are calls of one body; None where no two are equal."""
    module = copy_of(module)
    write_single_parts(module.graph)
    kinds = find_equal_regions(module.graph)
    if not kinds:
        return None
    bodies = [_body(regions[0]) for regions in kinds]
    called: dict[Node, Node] = {}
    for number, (regions, body) in enumerate(zip(kinds, bodies, strict=True)):
        name = f"layers_{number}"
        module.add_module(name, body)
        for region in regions:
            called |= _call(module.graph, region, name, called)
    return write_code(module)


def _body(region: Region) -> GraphModule:
    """Return the nodes of a region as a graph by itself: its inputs are the operands, it returns the results."""
    graph, nodes = Graph(), dict[Node, Node]()
    for number, operand in enumerate(region.operands):
        nodes[operand] = graph.placeholder(f"operand_{number}")
        nodes[operand].meta = {"example_value": example_value(operand)}
    for node in region.nodes:
        nodes[node] = graph.node_copy(node, nodes.__getitem__)
    graph.output(tuple(nodes[node] for node in region.results))
    return GraphModule({}, graph)


def _call(graph: Graph, region: Region, name: str, called: dict[Node, Node]) -> dict[Node, Node]:
    """Put a call of the body in place of the region's nodes.

    Args:
        graph: that of the region.
        region: of the graph as it was.
        name: of the body.
        called: what has taken the place of results of other regions.

    Returns:
        What has taken the place of this one's results.
    """
    with graph.inserting_after(region.nodes[-1]):
        body = graph.get_attr(name)
    operands = tuple(called.get(node, node) for node in region.operands)
    with graph.inserting_after(body):
        call = graph.call_function(torch.ops.higher_order.invoke_subgraph, (body, name, *operands))
    call.meta = {"example_value": tuple(example_value(node) for node in region.results)}
    after, results = call, {}
    for number, node in enumerate(region.results):
        with graph.inserting_after(after):
            after = graph.call_function(operator.getitem, (call, number))
        after.meta = dict(node.meta)
        node.replace_all_uses_with(after)
        results[node] = after
    for node in reversed(region.nodes):
        graph.erase_node(node)
    return results

"""The queries of a few positions of a layer that computes the others only once they are chosen."""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, GraphModule, Node

from ...kernels.gather import gather_tokens
from ..errors import CannotPrune
from ..fx.nodes import leaves_of, where, with_leaves
from ..token_dim.solver import Gather, Length, NodePlan
from .early_gather import Hoisted
from .shrink import take, take_merged


def query_module(hoisted: Hoisted, plans: dict[Node, NodePlan]) -> tuple[GraphModule, list[Node]]:
    """Queries as a function of positions.

    What `plans` tells to be right for the kept positions is right for any, since each token is treated for itself.

    Args:
        hoisted: the layer.
        plans: how its nodes run on a part of the tokens, as `passes.token_dim.solver` found.

    Returns:
        A function ``(positions [B, T] int64, *inputs) -> [B, H, T, D]``, and the nodes of its inputs.

    Raises:
        CannotPrune: where a node counts its tokens.
    """
    within = {hoisted.query}
    nodes = [node for node in reversed(plans) if node in hoisted.tokenwise]
    for node in nodes:
        if node in within:
            within.update(node.all_input_nodes)
    nodes = [node for node in reversed(nodes) if node in within]
    graph = Graph()
    positions = graph.placeholder("positions")
    inputs: dict[Node, Node] = {}
    for node in nodes:
        for parent in node.all_input_nodes:
            source = hoisted.hidden if parent is hoisted.entry else parent
            if source not in nodes and source not in inputs:
                inputs[source] = graph.placeholder(f"input_{len(inputs)}")
    rows = graph.call_method("size", (positions, 0))
    number = graph.call_method("size", (positions, 1))
    entering = graph.call_function(gather_tokens, (inputs[hoisted.hidden], positions, 1, 0))
    length = graph.call_method("size", (inputs[hoisted.hidden], 1))
    copies: dict[Node, Node] = {hoisted.entry: entering} | inputs
    for node in nodes:
        leaves = []
        for leaf, repair in zip(leaves_of(node), plans[node].repairs, strict=True):
            value = copies[leaf] if isinstance(leaf, Node) else leaf
            if isinstance(repair, Gather) and repair.merged:
                value = graph.call_function(take_merged, (value, positions, repair.axes[0], length))
            elif isinstance(repair, Gather):
                how = (repair.axes, repair.batch_axis, repair.batch_is_new, repair.roomy)
                value = graph.call_function(take, (value, positions, length, *how))
            elif isinstance(repair, Length) and not repair.roomy:
                value = graph.call_function(operator.mul, (number, repair.times))
                value = graph.call_function(operator.mul, (value, rows)) if repair.rows else value
            elif repair is not None:
                raise CannotPrune(f"{where(node)} counts the tokens of its queries")
            leaves.append(value)
        copies[node] = graph.node_copy(node)
        copies[node].args, copies[node].kwargs = with_leaves(node, leaves)
    graph.output(copies[hoisted.query])
    return GraphModule(torch.nn.Module(), graph), list(inputs)

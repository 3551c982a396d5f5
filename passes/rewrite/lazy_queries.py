"""The queries of a few positions of a layer that computes the others only once they are chosen."""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, GraphModule, Node

from ...kernels.gather import gather_tokens
from ..errors import CannotPrune
from ..fx.nodes import flatten_args, format_node, unflatten_args
from ..token_dim.plan import Gather, Length, NodePlan
from .early_gather import Hoisted
from .shrink import take, take_merged


def query_module(hoisted: Hoisted, plans: dict[Node, NodePlan]) -> tuple[GraphModule, list[Node]]:
    """Queries as a function of positions.

    What ``plans`` tells to be right for the kept positions is right for any, since each token is treated for itself.

    Args:
        hoisted: the layer.
        plans: how its nodes run on a part of the tokens, as ``passes.token_dim.solver`` found.

    Returns:
        A function ``(positions [B, T] int64, *inputs) -> [B, H, T, D]``, and the nodes of its inputs.

    Raises:
        CannotPrune: where a node counts its tokens.
    """
    within = {hoisted.query}
    nodes = [node for node in reversed(plans) if node in hoisted.pointwise]
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
        for leaf, rewrite in zip(flatten_args(node), plans[node].rewrites, strict=True):
            value = copies[leaf] if isinstance(leaf, Node) else leaf
            if isinstance(rewrite, Gather) and rewrite.merged:
                value = graph.call_function(take_merged, (value, positions, rewrite.axes[0], length))
            elif isinstance(rewrite, Gather):
                how = (rewrite.axes, rewrite.batch_axis, rewrite.batch_is_new, rewrite.slack_axes)
                value = graph.call_function(take, (value, positions, length, *how))
            elif isinstance(rewrite, Length) and not rewrite.is_padded:
                value = graph.call_function(operator.mul, (number, rewrite.times))
                value = graph.call_function(operator.mul, (value, rows)) if rewrite.times_batch else value
            elif rewrite is not None:
                raise CannotPrune(f"{format_node(node)} counts the tokens of its queries")
            leaves.append(value)
        copies[node] = graph.node_copy(node)
        copies[node].args, copies[node].kwargs = unflatten_args(node, leaves)
    graph.output(copies[hoisted.query])
    return GraphModule(torch.nn.Module(), graph), list(inputs)

"""Finds the part of a graph that gives the keys of a layer their positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import torch
from torch.fx import Graph, GraphModule, Node

from ..fx.nodes import example_tensor, example_value
from ..fx.sizes import expression
from .attention import Attention
from .decoder import Decoder


@dataclass(frozen=True)
class RopeSubgraph:
    """What lies between a key without position and the key that enters the attention.

    ``pre_rope`` is the node of the former, ``[B, H, S, D]``, or ``[B, S, H, D]`` if ``is_bshd``. ``nodes`` compute
    the latter from it, in order; none where the layer has no rotary embedding.
    """

    pre_rope: Node
    nodes: tuple[Node, ...]
    is_bshd: bool = False


def find_rope(decoder: Decoder, attention: Attention, entering: Node) -> RopeSubgraph:
    """Return the rotation of the keys of an attention, in the layer that the hidden states ``entering`` enter.

    Walks back from the key along the nodes that all of its data went through, to the first one after which
    nothing of sequence length other than hidden states (a rotary table) was mixed in.
    """
    if attention.key not in decoder.dataflow or not nx.has_path(decoder.dataflow, entering, attention.key):
        return RopeSubgraph(attention.key, ())
    within = nx.ancestors(decoder.dataflow, attention.key) | {attention.key}
    dataflow = decoder.dataflow.subgraph(within & (nx.descendants(decoder.dataflow, entering) | {entering}))
    parent = nx.immediate_dominators(dataflow, entering)
    order = {node: place for place, node in enumerate(attention.key.graph.nodes)}
    start = attention.key
    while start is not entering:
        start = parent[start]
        between = sorted(nx.descendants(dataflow, start), key=order.__getitem__)
        if start is not entering and any(_reads_positions(node, dataflow, decoder) for node in between):
            value, length = example_tensor(start), example_value(decoder.embeddings).shape[1]
            is_bshd = value is not None and value.ndim == 4 and expression(value.shape[1]) == expression(length)
            return RopeSubgraph(start, tuple(between), is_bshd)
    return RopeSubgraph(attention.key, ())


def rope_module(rope: RopeSubgraph) -> tuple[Callable[..., torch.Tensor], list[Node]]:
    """The rotation as a function ``(unrotated key, *inputs) -> key`` of ``[B, H, S, D]``, and the nodes of its inputs.

    Reads the arguments that the nodes have now, so that a graph that was rewritten gives its new rotation.
    """
    graph = Graph()
    copies = {rope.pre_rope: graph.placeholder("unrotated")}
    inputs = [
        parent
        for parent in dict.fromkeys(parent for node in rope.nodes for parent in node.all_input_nodes)
        if parent not in rope.nodes and parent is not rope.pre_rope
    ]
    copies |= {node: graph.placeholder(f"input_{place}") for place, node in enumerate(inputs)}
    for node in rope.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[rope.nodes[-1]] if rope.nodes else copies[rope.pre_rope])
    module = GraphModule(torch.nn.Module(), graph)
    if rope.is_bshd:
        return (lambda keys, *others: module(keys.transpose(1, 2), *others)), inputs
    return module, inputs


def _reads_positions(node: Node, dataflow: nx.DiGraph, decoder: Decoder) -> bool:
    """Return whether a node mixes in a tensor of sequence length that is neither hidden states nor a parameter."""
    length = expression(example_value(decoder.embeddings).shape[1])
    for parent in node.all_input_nodes:
        value = example_tensor(parent)
        if parent in dataflow or value is None or isinstance(value, torch.nn.Parameter):
            continue
        if any(expression(size) == length for size in value.shape):
            return True
    return False

"""Finds the part of a graph that gives the keys of a layer their positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import torch
from torch.fx import Graph, GraphModule, Node

from ..fx.nodes import example, example_tensor
from ..fx.sizes import expression
from .attention import Attention
from .decoder import Decoder


@dataclass(frozen=True)
class Rotation:
    """What lies between a key without position and the key that enters the attention.

    ``unrotated`` is the node of the former, ``[B, H, S, D]``, or ``[B, S, H, D]`` if ``by_token``. ``nodes`` compute
    the latter from it, in order; none where the layer has no rotary embedding.
    """

    unrotated: Node
    nodes: tuple[Node, ...]
    by_token: bool = False


def find_rotation(decoder: Decoder, attention: Attention, entering: Node) -> Rotation:
    """The rotation of the keys of an attention, in the layer that the hidden states `entering` enter.

    Walks back from the key along the nodes that all of its data went through, to the first one behind which
    nothing of sequence length other than hidden states (a rotary table) was mixed in.
    """
    if attention.key not in decoder.flow or not nx.has_path(decoder.flow, entering, attention.key):
        return Rotation(attention.key, ())
    within = nx.ancestors(decoder.flow, attention.key) | {attention.key}
    flow = decoder.flow.subgraph(within & (nx.descendants(decoder.flow, entering) | {entering}))
    parent = nx.immediate_dominators(flow, entering)
    order = {node: place for place, node in enumerate(attention.key.graph.nodes)}
    start = attention.key
    while start is not entering:
        start = parent[start]
        between = sorted(nx.descendants(flow, start), key=order.__getitem__)
        if start is not entering and any(_reads_positions(node, flow, decoder) for node in between):
            value, length = example_tensor(start), example(decoder.embeddings).shape[1]
            by_token = value is not None and value.ndim == 4 and expression(value.shape[1]) == expression(length)
            return Rotation(start, tuple(between), by_token)
    return Rotation(attention.key, ())


def rotation_module(rotation: Rotation) -> tuple[Callable[..., torch.Tensor], list[Node]]:
    """The rotation as a function ``(unrotated key, *inputs) -> key`` of ``[B, H, S, D]``, and the nodes of its inputs.

    Reads the arguments that the nodes have now, so that a graph that was rewritten gives its new rotation.
    """
    graph = Graph()
    copies = {rotation.unrotated: graph.placeholder("unrotated")}
    inputs = [
        parent
        for parent in dict.fromkeys(parent for node in rotation.nodes for parent in node.all_input_nodes)
        if parent not in rotation.nodes and parent is not rotation.unrotated
    ]
    copies |= {node: graph.placeholder(f"input_{place}") for place, node in enumerate(inputs)}
    for node in rotation.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[rotation.nodes[-1]] if rotation.nodes else copies[rotation.unrotated])
    module = GraphModule(torch.nn.Module(), graph)
    if rotation.by_token:
        return (lambda keys, *others: module(keys.transpose(1, 2), *others)), inputs
    return module, inputs


def _reads_positions(node: Node, flow: nx.DiGraph, decoder: Decoder) -> bool:
    """Whether a node mixes in a tensor of sequence length that is neither hidden states nor a parameter."""
    length = expression(example(decoder.embeddings).shape[1])
    for parent in node.all_input_nodes:
        value = example_tensor(parent)
        if parent in flow or value is None or isinstance(value, torch.nn.Parameter):
            continue
        if any(expression(size) == length for size in value.shape):
            return True
    return False

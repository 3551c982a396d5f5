"""Finds the decoder that reads the injected features: its layers, and the hidden states between them.

No module or variable name is looked at. A decoder layer is an attention over the whole sequence that
descends from the embeddings; the hidden states between two layers are the node that every path from one
attention to all that follows the next goes through: a dominator.
"""

from __future__ import annotations

import inspect
import re
import traceback
from dataclasses import dataclass
from typing import Any

import networkx as nx
import sympy
import torch
from torch.fx import Graph, Node

from .attention import Attention, find_attention
from .errors import CannotPrune
from .nodes import example, example_tensor, is_hidden_states
from .sizes import expression


@dataclass(frozen=True)
class Decoder:
    """The decoder of a graph.

    ``layers`` are its attentions in order. ``hidden[i]`` is the node ``[B, S, C]`` that enters layer i, so
    ``hidden[i + 1]`` is what layer i hands on; there is none behind the last layer.
    """

    layers: tuple[Attention, ...]
    hidden: tuple[Node, ...]
    flow: nx.DiGraph
    embeddings: Node


def find_decoder(graph: Graph, embeddings: Node) -> Decoder | None:
    """The decoder that reads `embeddings`, or None where no attention of the graph does.

    Raises `CannotPrune` where layers are found whose hidden states are not: an unknown kind of residual
    stream, or layers of another kind between the attentions.
    """
    flow = data_flow(graph, embeddings)
    length = expression(example(embeddings).shape[1])
    layers = [
        attention
        for attention in find_attention(graph)
        if attention.query in flow
        and _length(attention.query) == length
        # Without a mask everything sees everything, as in an encoder.
        and (attention.causal or attention.mask is not None)
    ]
    if not layers:
        return None
    _check_consecutive(layers)
    spine = _spine(flow, embeddings, layers[-1])
    return Decoder(tuple(layers), tuple(_hidden(flow, spine, layers)), flow, embeddings)


def data_flow(graph: Graph, source: Node) -> nx.DiGraph:
    """The nodes that hold data computed from `source`, with an edge from each node to each user.

    Lengths are not data: an edge through a node that holds no tensor (a size) is left out.
    """
    flow = nx.DiGraph()
    flow.add_node(source)
    for node in graph.nodes:
        if node.op != "output" and node is not source and _holds_tensor(node):
            flow.add_edges_from((parent, node) for parent in node.all_input_nodes if parent in flow)
    return flow


def _holds_tensor(node: Node) -> bool:
    leaves = torch.utils._pytree.tree_leaves(node.meta.get("example_value"))
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves)


def _length(query: Node) -> sympy.Expr | None:
    value = example_tensor(query)
    return None if value is None or value.ndim < 2 else expression(value.shape[-2])


def _spine(flow: nx.DiGraph, embeddings: Node, last: Attention) -> list[Node]:
    """The nodes that all data behind the last attention went through, in order.

    These are the dominators of what the graph computes last from it.
    """
    order = {node: i for i, node in enumerate(last.output.graph.nodes)}
    sink = max(nx.descendants(flow, last.output), key=order.__getitem__, default=last.output)
    parent = nx.immediate_dominators(flow, embeddings)
    spine = [sink]
    while spine[-1] is not embeddings:
        spine.append(parent[spine[-1]])
    return spine[::-1]


def _hidden(flow: nx.DiGraph, spine: list[Node], layers: list[Attention]) -> list[Node]:
    """The last node of the spine before each attention: what enters its layer."""
    hidden: list[Node] = []
    behind: set[Node] = set(flow)
    for index, layer in enumerate(layers):
        ahead = nx.ancestors(flow, layer.output)
        entering = [node for node in spine if node in behind and node in ahead and is_hidden_states(node)]
        behind = nx.descendants(flow, layer.output)
        if index == 0:
            entering = [node for node in entering if node not in behind]
        if not entering:
            raise CannotPrune(
                f"no hidden states [B, S, C] were found that alone lead from decoder layer {index - 1} to "
                f"layer {index}: the residual stream has a form that is not known"
            )
        hidden.append(entering[-1])
    return hidden


def _check_consecutive(layers: list[Attention]) -> None:
    """Declines where the attentions are not in decoder layers 0, 1, 2, ...

    A layer of another kind (linear attention, convolution) has no attention to be counted by; the place of
    an attention's module in its list of layers shows that some are missing. Graphs that carry no modules
    are counted by their attentions.
    """
    paths = [_module_path(layer.output) for layer in layers]
    if len(layers) < 2 or not all(len(path) == len(paths[0]) and path for path in paths):
        return
    varying = [place for place in zip(*paths, strict=True) if len(set(place)) == len(layers)]
    if varying and list(varying[0]) != list(range(len(layers))):
        raise CannotPrune(
            f"attention was found in decoder layers {list(varying[0])} only: the others mix tokens in another way "
            "(linear attention, convolution, state space), or they are in another graph"
        )


def _module_path(node: Node) -> list[int]:
    """The places of the module that a node came from in lists of modules: ``layers.3.self_attn`` gives [3]."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return _numbers(stack[-1][0]) if stack else []


def check_whole(decoder: Decoder, ended: Any) -> None:
    """Declines a graph that ends inside the decoder: the layers behind the break see the full length.

    ``ended`` is what Dynamo says of where it ended the graph (`GraphCompileReason`), or None. Inside the decoder
    is inside the class that holds the layers.
    """
    if ended is None or not ended.graph_break:
        return
    stack = list((decoder.layers[-1].output.meta.get("nn_module_stack") or {}).values())
    holders = [cls for path, cls in stack if not _numbers(path)]
    for frame in ended.user_stack:
        if not holders or _is_within(frame, holders[-1]):
            raise CannotPrune(
                f"the decoder is cut into several graphs: Dynamo broke at {frame.filename}:{frame.lineno} "
                f"({ended.reason.splitlines()[0]}); rewrite that line, or try torch._dynamo.config."
                "capture_scalar_outputs and capture_dynamic_output_shape_ops, so that it stays in one graph"
            )


def _is_within(frame: traceback.FrameSummary, cls: type) -> bool:
    lines, first = inspect.getsourcelines(cls)
    return frame.filename == inspect.getsourcefile(cls) and first <= (frame.lineno or 0) < first + len(lines)


def _numbers(path: str) -> list[int]:
    """The numbers in the path of a module: its places in lists of modules."""
    return [int(number) for number in re.findall(r"(?<![A-Za-z_0-9])\d+(?![A-Za-z_0-9])", path)]

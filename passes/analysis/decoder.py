"""Finds the decoder that reads the injected features: its layers, and the hidden states between them.

No name of a module or variable is looked at. A decoder layer is found by an attention over the whole sequence
that descends from the embeddings. Where the attentions' modules are in a list of modules, every place of
that list is a layer, so that layers of another kind (convolution, linear attention, state space) count too.
The hidden states between two layers are what every path from one layer's result to all that follows
goes through: a dominator.
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
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, Node

from ..errors import CannotPrune
from ..fx.nodes import example_tensor, example_value, format_node, is_hidden_states
from ..fx.sizes import expression
from .attention import Attention, find_attention, where_unknown
from .dataflow import build_dataflow, dominator_chain
from .flash_attention import read_flash

# The place of a module in a list of modules, in its path.
_PLACE = re.compile(r"(?<![A-Za-z_0-9])\d+(?![A-Za-z_0-9])")


@dataclass(frozen=True)
class Decoder:
    """The decoder of a graph.

    ``layers`` are its attentions in order, None for a layer that has none. ``inside`` are the nodes of each layer
    that hold data of ``dataflow``, the nodes computed from ``embeddings``, in order; only the attention itself where
    the graph does not show modules. ``order`` are the places of all nodes in the graph.
    """

    layers: tuple[Attention | None, ...]
    inside: tuple[tuple[Node, ...], ...]
    dataflow: nx.DiGraph
    embeddings: Node
    order: dict[Node, int]

    def first_index(self, layer: int) -> int:
        """Return the place in the graph of the first node inside a layer."""
        return self.order[self.inside[layer][0]]

    def tail(self) -> set[Node]:
        """Return the nodes after the last layer; none where the graph does not show where that ends."""
        last = self.inside[-1]
        if self.layers[-1] is not None and last == (self.layers[-1].output,):
            return set()
        return {node for node, place in self.order.items() if place > self.order[last[-1]]}

    def attention_from(self, layer: int) -> int | None:
        """Return the first layer from ``layer`` on that has attention, None where none has."""
        return next((index for index in range(layer, len(self.layers)) if self.layers[index] is not None), None)


def find_decoder(graph: Graph, embeddings: Node) -> Decoder | None:
    """Return the decoder that reads ``embeddings``, or None where no attention of the graph does.

    Raises ``CannotPrune`` where the graph begins in the middle of it, where an operator that looks like an attention
    is not a known one, or where a node on the way has no example value.
    """
    dataflow = build_dataflow(graph, embeddings)
    order = {node: place for place, node in enumerate(graph.nodes)}
    length = expression(example_value(embeddings).shape[1])
    attentions = [
        attention
        for attention in find_attention(graph)
        if attention.query in dataflow
        and _length(attention) == length
        # Without a mask everything sees everything, as in an encoder.
        and (attention.causal or attention.mask is not None)
    ]
    if not attentions:
        _check_unknown(dataflow, length)
        return None
    layers, inside = _layers(attentions, dataflow, order)
    return Decoder(tuple(layers), tuple(inside), dataflow, embeddings, order)


def holds_decoder(graph: Graph) -> bool:
    """Return whether a graph has hidden states as an input that a decoder of more than one layer descends from."""
    try:
        inputs = [node for node in graph.find_nodes(op="placeholder") if is_hidden_states(node)]
        found = [find_decoder(graph, node) for node in inputs]
        return any(decoder is not None and len(decoder.layers) > 1 for decoder in found)
    except CannotPrune:
        return False


def _check_unknown(dataflow: nx.DiGraph, length: sympy.Expr) -> None:
    """Raise ``CannotPrune`` for attentions that are there and not seen.

    Queries, keys and values go into an operator of its own, such as FlashAttention; scores are an ``einsum``, or hold
    more than products, a scale and a mask; or the layers are graphs inside of this one, which are computed again in the
    backward pass.
    """
    for node in dataflow:
        if node.target is torch.ops.higher_order.tag_activation_checkpoint:
            raise CannotPrune(
                "the decoder's layers are checkpointed, so that the graph does not show what is inside of them; do "
                "without gradient checkpointing: the pruned layers keep much less for the backward pass"
            )
        if node.target is torch.functional.einsum and _is_square(node, length):
            raise CannotPrune(
                f"the decoder attends by {format_node(node)}, which is not known; load the model with "
                'attn_implementation="sdpa", or multiply by torch.matmul'
            )
        unknown = where_unknown(node)
        if unknown is not None and _is_square(node, length):
            raise CannotPrune(
                f"the decoder attends by a softmax in a form that is not known, at {format_node(unknown)}: known are "
                "products of queries and keys that are scaled, with one mask added, and sinks that all queries share"
            )
        name = str(node.target)
        values = [value.shape for leaf in node.all_input_nodes if (value := example_tensor(leaf)) is not None]
        sequences = [shape for shape in values if len(shape) == 4 and length in map(expression, shape[1:3])]
        is_operator = isinstance(node.target, OpOverload | OpOverloadPacket) and not name.startswith("aten.")
        # FlashAttention takes several rows as one, too.
        if (is_operator and len(sequences) >= 3) or read_flash(node) is not None:
            raise CannotPrune(
                f"the decoder attends by {name}, which is not known; load the model with "
                'attn_implementation="sdpa", "eager" or "flex_attention"'
            )


def _is_square(scores: Node, length: sympy.Expr) -> bool:
    value = example_tensor(scores)
    if value is None or value.ndim < 3:
        return False
    rows, columns = map(expression, value.shape[-2:])
    # One more column is that of sinks.
    return rows == length and columns - length in (0, 1)


def _length(attention: Attention) -> sympy.Expr | None:
    value, axis = example_tensor(attention.query), attention.token_axis
    return None if value is None or value.ndim < -axis else expression(value.shape[axis])


def _layers(
    attentions: list[Attention], dataflow: nx.DiGraph, order: dict[Node, int]
) -> tuple[list[Attention | None], list[tuple[Node, ...]]]:
    """Return the layers, and the nodes inside each.

    Raises ``CannotPrune`` where the modules show that the graph begins in the middle of the decoder.
    """
    depth = _list_of_layers(attentions)
    if depth is None:
        return list(attentions), [(attention.output,) for attention in attentions]
    path, place = _modules(attentions[0].output)[depth]
    holder = path[: path.rindex(str(place))]
    inside: dict[int, list[Node]] = {}
    for node in sorted(dataflow, key=order.__getitem__):
        for path, number in _modules(node)[depth : depth + 1]:
            if path.startswith(holder) and path[: path.rindex(str(number))] == holder:
                inside.setdefault(number, []).append(node)
    places = sorted(inside)
    if places != list(range(len(places))):
        raise CannotPrune(
            f"this graph holds only the decoder layers {places}: Dynamo cuts the decoder into several graphs and has "
            "to be kept from that (TORCH_LOGS=graph_breaks shows where it breaks)"
        )
    by_place = {_modules(attention.output)[depth][1]: attention for attention in reversed(attentions)}
    return [by_place.get(number) for number in places], [tuple(inside[number]) for number in places]


def _list_of_layers(attentions: list[Attention]) -> int | None:
    """How many lists of modules are around the one that holds the layers; None where the graph shows no such list."""
    modules = [_modules(attention.output) for attention in attentions]
    if not all(modules) or len({len(each) for each in modules}) != 1:
        return None
    for depth, _ in enumerate(modules[0]):
        places = [each[depth][1] for each in modules]
        if len(places) == 1 or len(set(places)) > 1:
            # An attention for each place; several at one place are one layer's.
            return depth if len(set(places)) == len(places) else None
    return None


def _modules(node: Node) -> list[tuple[str, int]]:
    """Return the modules around a node that are in a list of modules: their paths, and their places in the list."""
    found: dict[str, int] = {}
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        numbers = list(_PLACE.finditer(path))
        if numbers:
            found.setdefault(path[: numbers[-1].end()], int(numbers[-1].group()))
    return list(found.items())


def find_layer_input(decoder: Decoder, layer: int) -> Node:
    """The hidden states ``[B, S, C]`` that enter a layer: the last that all data from the layer before goes through.

    Raises ``CannotPrune`` where there is no such node: an unknown kind of residual stream.
    """
    dataflow, order, first = decoder.dataflow, decoder.order, decoder.first_index(layer)
    if layer == 0:
        # What the layer reads; further paths may lead from the embeddings to later layers (per-layer inputs).
        channels = expression(example_value(decoder.embeddings).shape[2])
        found = [
            node
            for node in {parent for node in decoder.inside[0] for parent in node.all_input_nodes}
            if order[node] < first and node in dataflow and is_hidden_states(node)
            if expression(example_value(node).shape[2]) == channels
        ] or dominator_chain(dataflow, order, (decoder.embeddings,))
    else:
        before = decoder.layers[layer - 1]
        found = dominator_chain(dataflow, order, decoder.inside[layer - 1] if before is None else (before.output,))
    found = [node for node in found if order[node] < first and is_hidden_states(node)]
    if not found:
        raise CannotPrune(
            f"no hidden states [B, S, C] were found that alone lead from decoder layer {layer - 1} to "
            f"layer {layer}: the residual stream has a form that is not known"
        )
    return max(found, key=order.__getitem__)


def check_whole(decoder: Decoder, ended: Any) -> None:
    """Decline a graph that ends inside the decoder: the layers after the break see the full length.

    ``ended`` is what Dynamo says of where it ended the graph (``GraphCompileReason``), or None. Inside the decoder
    is inside the class that holds the layers.
    """
    if ended is None or not ended.graph_break:
        return
    attention = next(layer for layer in reversed(decoder.layers) if layer is not None)
    stack = list((attention.output.meta.get("nn_module_stack") or {}).values())
    holders = [cls for path, cls in stack if not _PLACE.search(path)]
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

"""Moves a cut from the end of the scoring layer to its input, for all but the keys and values.

After the cut nothing reads what a dropped token computes in the scoring layer, except that the kept tokens attend to
its key and value. So queries, attention rows, the output projection, norms and the MLP are needed for kept tokens only:

    before:  hidden [B, S, C] -> q, k, v -> attention -> MLP -> after [B, S, C] -> gather -> later layers
    after:   hidden [B, S, C] -> k, v -----------v
                   '-> gather -> q -> attention [B, S', ...] -> MLP -> later layers

No hand-written pruning does this, since a model's code computes q, k and v in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from ..analysis.attention import Attention, as_sdpa, deferred_attention
from ..analysis.cut_sites import CutSite
from ..analysis.dataflow import reached_from
from ..fx.emit import Emitter
from ..fx.nodes import example_value, writes_into_first
from ..fx.sizes import expression


@dataclass(frozen=True)
class Hoisted:
    """A scoring layer whose cut was moved to its input.

    ``entry`` is the new cut: it stands for the hidden states ``[B, S, C]`` that enter the layer, where kept tokens are
    meant. ``pointwise`` are the nodes that now run on kept tokens only, and so must treat each token for itself;
    ``query`` is the one of them that holds the queries, ``attention`` that of the layer.
    """

    entry: Node
    hidden: Node
    query: Node
    pointwise: frozenset[Node]
    attention: Node

    def finish(self, emit: Emitter, positions: Node) -> None:
        """Write the attention of the tokens at ``positions`` ``[B, S']``, once all else is rewritten."""
        node = self.attention
        query, key, value, mask = node.args
        if mask is None:
            with emit.before(node):
                mask = emit(_causal_rows, positions, key)
        node.target, node.args = F.scaled_dot_product_attention, (query, key, value)
        node.kwargs = {"attn_mask": mask, **node.kwargs}
        self.entry.replace_all_uses_with(self.hidden)
        node.graph.erase_node(self.entry)


def hoist(site: CutSite, layer: Attention, keys: Node) -> Hoisted | None:
    """Move the cut of a site to the input of its layer.

    What the layer's own keys, values and mask are computed from stays at full length. What both they and the rest of
    the layer read (the norm in front of the projections) is copied for the rest. The nodes that then run on fewer
    tokens are moved after the keys and values, from which the selection is made.

    Args:
        site: where the cut is, in a graph that is changed: a copy, to be dropped if the plan declines it.
        layer: the attention of the layer, whether or not it is scored.
        keys: its keys, without the slack of a static cache.

    Returns:
        None, and the graph as it was, where the layer has no fused attention or one with dropout, or where something
        outside of the layer reads what is between its input and its end.
    """
    attention = layer.output
    given = as_sdpa(attention)
    if given is None or given.get("dropout_p"):
        return None
    query, key, value, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    lengths = {expression(example_value(each).shape[-2]) for each in (keys, layer.query)}
    if len(lengths) != 1:
        return None
    graph, hidden = attention.graph, site.hidden
    below = reached_from([hidden], lambda node: node.users)
    above = reached_from([site.after], lambda node: node.all_input_nodes)
    read = [node for node in (key, value, mask) if node is not None]
    front = below & reached_from(read, lambda node: node.all_input_nodes)
    between = (below & above) - front
    rest = [node for node in graph.nodes if node in between]
    downstream = reached_from([site.after], lambda node: node.users) | between
    if query not in between or any(
        user.op == "output" or user not in downstream for node in rest for user in node.users
    ):
        return None
    # What is copied must not be changed by others later on.
    if any(writes_into_first(node) for node in (*front - {hidden}, *rest)):
        return None
    return _moved(site, attention, given, front, rest)


def _moved(site: CutSite, attention: Node, given: Mapping[str, Any], front: set[Node], rest: list[Node]) -> Hoisted:
    """Rewrite a layer so that ``rest`` runs after its keys and values, on copies of what it shares with ``front``."""
    graph, hidden, between = attention.graph, site.hidden, set(rest)
    query, key, value, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    attention.target = deferred_attention
    attention.kwargs = {"scale": given.get("scale"), "enable_gqa": bool(given.get("enable_gqa"))}
    order = list(graph.nodes)
    for node in order[: order.index(attention)]:
        if node in between:
            attention.prepend(node)
    first = next(node for node in graph.nodes if node in between)
    with graph.inserting_before(first):
        entry = graph.call_function(cut_marker, (hidden,))
    entry.meta = {"example_value": example_value(hidden)}
    copies: dict[Node, Node] = {}

    def of_kept(node: Node) -> Node:
        """Return what stands for ``node`` where kept tokens are meant."""
        if node not in front:
            return node
        if node is hidden:
            return entry
        if node not in copies:
            parents = {parent: of_kept(parent) for parent in node.all_input_nodes}
            with graph.inserting_before(first):
                copies[node] = graph.node_copy(node, parents.__getitem__)
        return copies[node]

    query = of_kept(query)
    attention.args = (query, key, value, mask)
    for node in rest:
        if node is not attention:
            node.args, node.kwargs = map_arg(node.args, of_kept), map_arg(node.kwargs, of_kept)
    pointwise = frozenset([*rest, *copies.values()])
    return Hoisted(entry, hidden, query, pointwise, attention)


def cut_marker(hidden: Tensor) -> Tensor:
    """Stand in a graph for the hidden states ``[B, S, C]`` of kept tokens, until it is known which they are."""
    return hidden


def _causal_rows(positions: Tensor, key: Tensor) -> Tensor:
    """``[B, 1, S', S]`` bool: the rows of a causal mask."""
    return positions[:, None, :, None] >= torch.arange(key.shape[2], device=key.device)

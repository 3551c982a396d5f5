"""Tells what the nodes of a graph are computed from: token embeddings, data from outside, or weights alone.

Visual features are data from outside: they descend from pixels, or come in as features. Text embeddings are looked up
by token ids. Learned prompts and position tables are weights: parameters, buffers and constants of a module. Lengths,
ids and single numbers are no data. An attention hands its values on: its masks, positions and caches are none of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from .attention import Attention, find_attention
from .nodes import arguments, example, example_tensor, is_vmapped, storage_of, writes_into_first
from .sizes import expression

_LOOKUPS = {F.embedding, torch.embedding, torch.ops.aten.embedding.default}


class Origins:
    """Where each node of a graph comes from.

    ``lookups`` and ``data`` of a node are the lookups of embeddings and the inputs of the graph that it is computed
    from. ``attended`` are the nodes that an attention has a part in, ``written`` those that were written into later on.
    """

    def __init__(self, graph: Graph) -> None:
        self.lookups: dict[Node, frozenset[Node]] = {}
        self.data: dict[Node, frozenset[Node]] = {}
        self.attended: set[Node] = set()
        self.written: set[Node] = set()
        self._aliases: dict[int, list[Node]] = {}
        self.attentions = {attention.output: attention for attention in find_attention(graph)}
        for node in graph.nodes:
            self._add(node)
            value = example_tensor(node)
            if value is not None and not is_vmapped(value):
                self._aliases.setdefault(storage_of(value), []).append(node)

    def is_foreign(self, node: Node, to: Node) -> bool:
        """Whether a node is data that come from elsewhere than those of another node."""
        lookups, data = self.lookups[node] & self.lookups[to], self.data[node] & self.data[to]
        return bool(self.data[node]) and not lookups and not data

    def is_text(self, node: Node) -> bool:
        """Whether a node is computed from looked up embeddings and from no data."""
        return bool(self.lookups[node]) and not self.data[node] and node not in self.attended

    def is_embeddings(self, node: Node) -> bool:
        """Whether a node may hold the embeddings of a prompt: those of text, or an input of the graph."""
        return self.is_text(node) or node.op == "placeholder"

    def put_into(self, node: Node, into: Node) -> None:
        """Has `node`, which is `into` with features in it, count as coming from where `into` does."""
        self.lookups[node], self.data[node] = self.lookups[into], self.data[into]

    def _add(self, node: Node) -> None:
        if node.target in _LOOKUPS:
            self.lookups[node], self.data[node] = frozenset([node]), frozenset()
            return
        if node.op == "placeholder":
            self.lookups[node], self.data[node] = frozenset(), frozenset([node] if is_data(node) else [])
            return
        parents = [parent for parent in node.all_input_nodes if _holds_tensor(parent)]
        if "example_value" in node.meta and not _holds_tensor(node) and not writes_into_first(node):
            parents = []
        if node in self.attentions:
            self.attended.add(node)
            parents = entering(self.attentions[node]) or parents
        self.lookups[node] = frozenset().union(*(self.lookups[parent] for parent in parents))
        self.data[node] = frozenset().union(*(self.data[parent] for parent in parents))
        if not self.attended.isdisjoint(parents):
            self.attended.add(node)
        if writes_into_first(node):
            self._write(node)

    def _write(self, node: Node) -> None:
        """Has all that shares memory with what `node` writes into come from what it writes, too."""
        value = example_tensor(node.args[0])
        if value is None or is_vmapped(value):
            return
        for written in self._aliases.get(storage_of(value), []):
            if written is not node:
                self.lookups[written] |= self.lookups[node]
                self.data[written] |= self.data[node]
                self.written.add(written)


def entering(attention: Attention) -> list[Node]:
    """The hidden states ``[B, S, C]`` from which an attention's values are projected; none where that isn't seen.

    What comes in beside them, as from a cache, is left out.
    """
    query, given = example_tensor(attention.query), arguments(attention.output)
    # The third argument of a fused attention, the second of a product.
    value = given[2] if len(given) > 2 else given[-1]
    if query is None or query.ndim != 4 or not isinstance(value, Node):
        return []
    sizes = [expression(query.shape[0]), expression(query.shape[2])]
    found, seen, waiting = [], {value}, [value]
    while waiting:
        node = waiting.pop()
        tensor = example_tensor(node)
        if tensor is not None and tensor.ndim == 3 and [expression(size) for size in tensor.shape[:2]] == sizes:
            found.append(node)
            continue
        new = [parent for parent in node.all_input_nodes if parent not in seen]
        seen.update(new)
        waiting += new
    return found


def is_data(node: Node) -> bool:
    """Whether an input of a graph is data of a call, and not a weight: a float tensor of two axes or more."""
    value = example_tensor(node)
    if value is None or isinstance(value, torch.nn.Parameter) or not value.is_floating_point() or value.ndim < 2:
        return False
    # Dynamo marks parameters, buffers and other tensors that a module holds.
    return "_dynamo_static_input_type" not in (node.meta.get("tensor_dict") or {})


def _holds_tensor(node: Node) -> bool:
    if "example_value" not in node.meta:
        return True
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(example(node)))

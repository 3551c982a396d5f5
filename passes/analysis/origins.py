"""Tells what the nodes of a graph are computed from: token embeddings, data from outside, or weights alone.

Visual features are data from outside: they descend from pixels, or come in as features. Text embeddings are looked up
by token ids ``[B, S]`` that come in. Learned prompts and position tables are weights: parameters, buffers and constants
of a module. Lengths, ids and single numbers are no data. An attention hands its values on, and no masks, positions or
caches. Text that attends to data, as in cross-attention, is text still.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from ..fx.nodes import arguments, example_tensor, example_value, is_vmapped, storage_of, writes_into_first
from .attention import Attention, find_attention

_LOOKUPS = {F.embedding}

# What may be done to ids before they are looked up, element by element.
_OF_IDS = {
    *(torch.where, torch.clamp, torch.masked_fill, torch.add, torch.sub, torch.mul, torch.remainder),
    *(operator.add, operator.sub, operator.mul, operator.mod),
    *("where", "clamp", "clamp_min", "clamp_max", "masked_fill", "masked_fill_", "to", "long", "int", "contiguous"),
    *("view", "reshape", "clone", "detach", "add", "sub", "mul"),
}


class Origins:
    """Where each node of a graph comes from.

    ``lookups`` and ``data`` of a node are the lookups of embeddings and the inputs of the graph that it is computed
    from. ``attended`` are the nodes that an attention has a part in, ``written`` those that were written into later on,
    ``beside`` the attentions of text to data.
    """

    def __init__(self, graph: Graph) -> None:
        self.lookups: dict[Node, frozenset[Node]] = {}
        self.data: dict[Node, frozenset[Node]] = {}
        self.attended: set[Node] = set()
        self.written: set[Node] = set()
        self.beside: set[Node] = set()
        self._aliases: dict[int, list[Node]] = {}
        self.attentions = {attention.output: attention for attention in find_attention(graph)}
        for node in graph.nodes:
            self._add(node)
            value = example_tensor(node)
            if value is not None and not is_vmapped(value):
                self._aliases.setdefault(storage_of(value), []).append(node)

    def is_foreign(self, node: Node, to: Node) -> bool:
        """Return whether a node is data that come from elsewhere than those of another node."""
        lookups, data = self.lookups[node] & self.lookups[to], self.data[node] & self.data[to]
        return bool(self.data[node]) and not lookups and not data

    def is_text(self, node: Node) -> bool:
        """Return whether a node is computed from looked up embeddings and from no data."""
        return bool(self.lookups[node]) and not self.data[node] and node not in self.attended

    def is_embeddings(self, node: Node) -> bool:
        """Return whether a node may hold the embeddings of a prompt: those of text, or an input of the graph."""
        return self.is_text(node) or node.op == "placeholder"

    def put_into(self, node: Node, into: Node) -> None:
        """Have ``node``, which is ``into`` with features in it, count as coming from where ``into`` does."""
        self.lookups[node], self.data[node] = self.lookups[into], self.data[into]

    def _add(self, node: Node) -> None:
        if node.target in _LOOKUPS and _is_of_ids(arguments(node)[0]):
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
            attention = self.attentions[node]
            asking, parents = _entering(attention.query), projected_from(attention) or parents
            text = frozenset().union(*(self.lookups[parent] for parent in asking))
            if text and not any(text & self.lookups[parent] for parent in parents):
                if any(self.data[parent] for parent in parents):
                    self.beside.add(node)
                self.lookups[node], self.data[node] = text, frozenset()
                return
        self.lookups[node] = frozenset().union(*(self.lookups[parent] for parent in parents))
        self.data[node] = frozenset().union(*(self.data[parent] for parent in parents))
        if not self.attended.isdisjoint(parents):
            self.attended.add(node)
        if writes_into_first(node):
            self._write(node)

    def _write(self, node: Node) -> None:
        """Have all that shares memory with what ``node`` writes into come from what it writes, too."""
        value = example_tensor(node.args[0])
        if value is None or is_vmapped(value):
            return
        for written in self._aliases.get(storage_of(value), []):
            if written is not node:
                self.lookups[written] |= self.lookups[node]
                self.data[written] |= self.data[node]
                self.written.add(written)


def _entering(heads: Any) -> list[Node]:
    """Return the nodes from which queries, keys or values ``[B, H, S, D]`` are projected.

    Inputs of four axes, as of a cache, are left out.
    """
    found, seen, waiting = [], {heads}, [heads] if isinstance(heads, Node) else []
    while waiting:
        node = waiting.pop()
        value = example_tensor(node)
        if value is not None and value.ndim < 4:
            found.append(node)
            continue
        new = [parent for parent in node.all_input_nodes if parent not in seen and _holds_tensor(parent)]
        seen.update(new)
        waiting += new
    return found


def reads_data_beside(graph: Graph) -> bool:
    """Return whether text attends to data that are no text: cross-attention, to what an encoder made."""
    origins = Origins(graph)
    return bool(origins.beside)


def _values(attention: Attention) -> Any:
    """Return the values of an attention: the third argument of a fused one, the second of a product."""
    given = arguments(attention.output)
    return given[2] if len(given) > 2 else given[-1]


def projected_from(attention: Attention) -> list[Node]:
    """Return the hidden states from which the values of an attention are projected."""
    return _entering(_values(attention))


def _is_of_ids(index: Any) -> bool:
    """Return whether what is looked up are ids ``[B, S]`` that come in, and no positions that are computed."""
    waiting, seen = [index], set()
    while waiting:
        node = waiting.pop()
        value = example_tensor(node)
        if value is None or node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder" and value.ndim == 2 and value.dtype in (torch.int64, torch.int32):
            return not _is_static(node)
        if node.target in _OF_IDS:
            waiting += node.all_input_nodes
    return False


def _is_static(node: Node) -> bool:
    """Return whether an input of a graph is a tensor that a module holds: Dynamo marks these."""
    return "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {})


def is_data(node: Node) -> bool:
    """Return whether an input of a graph is data of a call, and not a weight: a float tensor of two axes or more."""
    value = example_tensor(node)
    if value is None or isinstance(value, torch.nn.Parameter) or not value.is_floating_point() or value.ndim < 2:
        return False
    return not _is_static(node)


def _holds_tensor(node: Node) -> bool:
    if "example_value" not in node.meta:
        return True
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(example_value(node)))

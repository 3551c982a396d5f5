"""Finds where a graph puts visual features among the text embeddings.

``embeddings.masked_scatter(mask, features)`` shows both facts that pruning needs: which positions are
visual (the mask), and, as a shape, how many there are (the features).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from .nodes import arguments, is_hidden_states

_MASKED_SCATTER = {torch.masked_scatter, "masked_scatter", torch.ops.aten.masked_scatter.default}

# Features that are put among zeros, to be added to something later on, are not among embeddings.
_EMPTY = {torch.zeros, torch.zeros_like, "new_zeros"}


@dataclass(frozen=True)
class Injection:
    """Visual features among the embeddings.

    ``embeddings`` is the node ``[B, S, C]`` that holds text and visual features, after the last injection.
    ``masks`` are the nodes ``[B, S, 1 or C]`` that say where, ``features`` the nodes whose elements, in
    rows of C, were put there: one each for images and videos that come in one prompt. ``frame`` is the node
    ``[B, S]`` int64 of the frame of each token that an earlier graph injected, -1 outside.
    """

    embeddings: Node
    masks: tuple[Node, ...]
    features: tuple[Node, ...]
    frame: Node | None = None


def find_injections(graph: Graph, earlier: Injection | None = None) -> list[Injection]:
    """All injections into ``[B, S, C]`` tensors, in order; those into the result of another are one with it.

    So are those into embeddings in which an `earlier` graph injected features already.
    """
    found = {} if earlier is None else {earlier.embeddings: earlier}
    for node in graph.nodes:
        if is_masked_scatter(node) and is_hidden_states(node):
            into, mask, features = _scatter_arguments(node)
            if into.target in _EMPTY:
                continue
            before = found.pop(into, Injection(into, (), ()))
            # By the same mask again it puts other features over those: the tokens are no more than they were.
            injected = dict(zip(before.masks, before.features, strict=True)) | {mask: features}
            found[node] = Injection(node, tuple(injected), tuple(injected.values()), before.frame)
    return list(found.values())


def injects_into_input(graph: Graph) -> bool:
    """Whether features are injected into embeddings that come in from outside, and may hold others already."""
    scatters = [node for node in graph.nodes if is_masked_scatter(node) and is_hidden_states(node)]
    return any(_scatter_arguments(node)[0].op == "placeholder" for node in scatters)


def is_masked_scatter(node: Node) -> bool:
    """Whether a node puts elements of one tensor into another, by a mask."""
    return node.target in _MASKED_SCATTER


def _scatter_arguments(node: Node) -> tuple[Node, Node, Node]:
    given = dict(zip(("self", "mask", "source"), arguments(node), strict=False)) | node.kwargs
    return given["self"], given["mask"], given["source"]

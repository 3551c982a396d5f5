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


@dataclass(frozen=True)
class Injection:
    """Visual features among the embeddings.

    ``embeddings`` is the node ``[B, S, C]`` that holds text and visual features, after the last injection.
    ``masks`` are the nodes ``[B, S, 1 or C]`` that say where, ``features`` the nodes whose elements, in
    rows of C, were put there: one each for images and videos that come in one prompt.
    """

    embeddings: Node
    masks: tuple[Node, ...]
    features: tuple[Node, ...]


def find_injection(graph: Graph) -> Injection | None:
    """The last chain of injections into a ``[B, S, C]`` tensor, or None where the graph has none."""
    scatters = [node for node in graph.nodes if node.target in _MASKED_SCATTER and is_hidden_states(node)]
    if not scatters:
        return None
    chain = [scatters[-1]]
    while chain[-1].args[0] in scatters:
        chain.append(chain[-1].args[0])
    arguments = [_scatter_arguments(node) for node in reversed(chain)]
    return Injection(scatters[-1], tuple(mask for mask, _ in arguments), tuple(source for _, source in arguments))


def _scatter_arguments(node: Node) -> tuple[Node, Node]:
    given = dict(zip(("self", "mask", "source"), arguments(node), strict=False)) | node.kwargs
    return given["mask"], given["source"]

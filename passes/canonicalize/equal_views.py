"""Views that a graph takes of the same tensor again and again, taken once.

Each layer makes its own ``cos.unsqueeze(1)`` of the rotary tables. After a cut each of them would be gathered.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from ..fx.nodes import example_tensor

_UNSQUEEZE = ("unsqueeze", torch.unsqueeze)


def merge_equal_views(graph: Graph, embeddings: Node) -> None:
    """Let equal new axes of one tensor be one node: they show the same memory, whoever writes into it and when.

    Nodes in front of ``embeddings`` stay, since what is known of the injection names some of them.
    """
    known: dict[tuple[object, ...], Node] = {}
    may_go = False
    for node in list(graph.nodes):
        may_go = may_go or node is embeddings
        if node.target not in _UNSQUEEZE or len(node.args) != 2 or example_tensor(node) is None:
            continue
        first = known.setdefault(tuple(node.args), node)
        if may_go and first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)

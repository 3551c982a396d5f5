"""Reads a softmax with sinks as one function, right for any number of keys.

The sinks are put after the scores of the keys, and their share is dropped after the softmax. Node by node that appends
something to tokens, and takes all of an axis but its last place; as a whole it treats keys as a softmax does.
"""

from __future__ import annotations

from torch.fx import Graph

from ..analysis.sinks import find_sinks, softmax_with_sinks
from ..fx.nodes import replace_by_call


def write_sinks(graph: Graph) -> None:
    """Replace each softmax with sinks by a call of ``softmax_with_sinks``.

    What reads more of it than the weights of the keys keeps what it reads.
    """
    for node in list(graph.nodes):
        found = find_sinks(node)
        if found is not None and node.target is not softmax_with_sinks:
            args = found.scores, found.sinks, found.is_shifted, found.dtype
            replace_by_call(node, softmax_with_sinks, args, lambda each: each.op != "placeholder")

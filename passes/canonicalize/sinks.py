"""Reads a softmax with sinks as one function, right for any number of keys.

The sinks are put after the scores of the keys, and their share is dropped after the softmax. Node by node that appends
something to tokens, and takes all of an axis but its last place; as a whole it treats keys as a softmax does.
"""

from __future__ import annotations

from torch.fx import Graph

from ..analysis.sinks import find_sinks, softmax_with_sinks


def write_sinks(graph: Graph) -> None:
    """Replace each softmax with sinks by a call of ``softmax_with_sinks``.

    What reads more of it than the weights of the keys keeps what it reads.
    """
    for node in list(graph.nodes):
        found = find_sinks(node)
        if found is None or node.target is softmax_with_sinks:
            continue
        with graph.inserting_before(node):
            call = graph.call_function(softmax_with_sinks, (found.scores, found.sinks, found.is_shifted, found.dtype))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        unused = [node]
        while unused:
            dead = unused.pop()
            parents = dead.all_input_nodes
            graph.erase_node(dead)
            unused += [each for each in parents if not each.users and each.op != "placeholder"]

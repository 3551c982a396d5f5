"""Which positions of the sequence a layer of a cache holds, as a pruned graph tells it.

While a model is traced for this backend, an empty layer of a cache that is given keys asks for the positions of these
keys (``integrations.transformers.positions``)::

    positions = torch.ops.sharp_compile.held_positions(key, value, moves, kind)

A graph that is pruned answers with the positions that are kept in that layer. In every other graph, and in the layers
in front of the cut, the answer is the operator's own: an empty tensor ``[0, 0]``, which stands for all positions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .errors import CannotPrune
from .fx.nodes import copy_of, example_value

_library = torch.library.Library("sharp_compile", "FRAGMENT")
# A layer that moves on, such as one with a sliding window, loses its oldest position for each new one once it is full.
# The kind is the class of a layer of a model's own, which keeps tokens in a way of its own; empty for others.
_library.define("held_positions(Tensor key, Tensor value, bool moves, str kind) -> Tensor")


@torch.library.impl(_library, "held_positions", "CompositeExplicitAutograd")
def _all_positions(key: Tensor, value: Tensor, moves: bool, kind: str) -> Tensor:
    return torch.empty((0, 0), dtype=torch.int64, device=key.device)


@torch.library.register_fake("sharp_compile::held_positions", lib=_library)
def _fake_positions(key: Tensor, value: Tensor, moves: bool, kind: str) -> Tensor:
    return key.new_empty((0, 0), dtype=torch.int64)


HELD_POSITIONS = torch.ops.sharp_compile.held_positions


def asks_for_positions(graph: Graph) -> list[Node]:
    """Return all nodes that ask for the positions of keys."""
    return [node for node in graph.nodes if node.target in (HELD_POSITIONS, HELD_POSITIONS.default)]


def check_kinds_known(graph: Graph, after_cut: Collection[Node]) -> None:
    """Decline where a layer of a cache after a cut keeps tokens in a way of its own.

    Raises:
        CannotPrune: naming its class.
    """
    for node in asks_for_positions(graph):
        if node in after_cut and node.args[3]:
            raise CannotPrune(
                f"the cache has layers of a kind of its own ({node.args[3]}): which positions they hold is not known"
            )


def tell_kept_positions(graph: Graph, stages: Mapping[Node, int], kept: Sequence[Node]) -> None:
    """Answer with the kept positions where the keys are after a cut.

    Args:
        graph: A pruned graph.
        stages: The number of cuts that a node is after; nodes in front of all cuts may be missing.
        kept: For each cut, the node of its kept positions ``[B, S']`` in the whole sequence.
    """
    for node in asks_for_positions(graph):
        if stage := stages.get(node, 0):
            node.replace_all_uses_with(kept[stage - 1])
            graph.erase_node(node)


def tell_all_positions(module: GraphModule) -> GraphModule:
    """Answer all questions that are left with one empty tensor, which compilers know better than the operator.

    Returns:
        A copy, or the same module if nothing asks.
    """
    if not asks_for_positions(module.graph):
        return module
    module = copy_of(module)
    asking = asks_for_positions(module.graph)
    with module.graph.inserting_before(asking[0]):
        value = example_value(asking[0])
        empty = module.graph.call_function(torch.empty, ((0, 0),), {"dtype": value.dtype, "device": value.device})
        empty.meta = {"example_value": value}
    for node in asking:
        node.replace_all_uses_with(empty)
        module.graph.erase_node(node)
    module.recompile()
    return module

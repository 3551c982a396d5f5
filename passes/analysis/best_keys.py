"""Knows attention to the best keys of each query, and the mask that it narrows.

``canonicalize.best_keys`` writes the choice as ``mark_best``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..errors import CannotPrune
from ..fx.nodes import arguments, format_node, name_of
from ..token_dim.sequence_functions import SEQUENCE_FUNCTIONS
from .attention import find_attention

# How a mask takes up what is marked.
_NARROWS = {"and_", "bitwise_and", "logical_and", "masked_fill", "add", "mul"}
_SAME_PLACES = {"unsqueeze", "invert", "logical_not", "bitwise_not", "to", "bool", "expand"}


def mark_best(scores: Tensor, k: int, marked: Any, others: Any, dtype: torch.dtype) -> Tensor:
    """Return ``[..., T]`` with ``marked`` where a score ``[..., T]`` is among the ``k`` highest of its row.

    All are marked where there are no more than ``k``.
    """
    best = scores.topk(torch.sym_min(k, scores.shape[-1]), dim=-1).indices
    return scores.new_full(scores.shape, others, dtype=dtype).scatter(-1, best, marked)


SEQUENCE_FUNCTIONS.add(mark_best)


def all_keys(mask: Node) -> Node:
    """Return the mask of which a mask hides all but the best keys; the mask itself where it hides nothing so."""
    return _taken_apart(mask)[0]


def check_chosen_after_cut(graph: Graph, after_cut: Collection[Node]) -> None:
    """Decline where a layer after a cut takes over which keys are best from a layer before it.

    They were chosen among all tokens: of those of a query none may be left.

    Raises:
        CannotPrune: naming the choice.
    """
    for attention in find_attention(graph):
        if attention.mask is None or attention.key not in after_cut:
            continue
        for choice in _taken_apart(attention.mask)[1]:
            if choice not in after_cut:
                raise CannotPrune(
                    f"a layer after the cut takes over the best keys that {format_node(choice)} chose before it, among "
                    "all tokens; choose a layer after which each layer chooses its own"
                )


def _taken_apart(mask: Node) -> tuple[Node, list[Node]]:
    """Return the mask of all keys, and the choices that narrow it."""
    choices: list[Node] = []
    while name_of(mask) in _NARROWS:
        operands = [each for each in arguments(mask)[:2] if isinstance(each, Node)]
        chosen = {each: choice for each in operands if (choice := _choice(each)) is not None}
        if len(operands) != 2 or len(chosen) != 1:
            break
        choices += chosen.values()
        mask = next(each for each in operands if each not in chosen)
    return mask, choices


def _choice(node: Node) -> Node | None:
    while name_of(node) in _SAME_PLACES and isinstance(node.args[0], Node):
        node = node.args[0]
    return node if node.target is mark_best else None

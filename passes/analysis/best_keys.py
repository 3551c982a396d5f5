"""Knows attention to the best keys of each query, and the mask that it narrows.

``canonicalize.best_keys`` writes the choice as ``mark_best``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..fx.nodes import arguments, name_of
from ..token_dim.sequence_functions import SEQUENCE_FUNCTIONS

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
    while name_of(mask) in _NARROWS:
        operands = [each for each in arguments(mask)[:2] if isinstance(each, Node)]
        restricted = [each for each in operands if _comes_from_best(each)]
        if len(operands) != 2 or len(restricted) != 1:
            break
        mask = next(each for each in operands if each is not restricted[0])
    return mask


def _comes_from_best(node: Node) -> bool:
    while name_of(node) in _SAME_PLACES and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.target is mark_best

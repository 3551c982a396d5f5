"""Reads a choice of each query's best keys as one function, right for any number of keys.

Sparse attention scores all keys by an indexer, takes the places of the k best, and marks these in a mask::

    places = scores.topk(k, -1).indices
    mask = torch.ones(B, S, T, dtype=torch.bool).scatter(-1, places, False)

Places count from the start of one sequence, and k may be more than a shorter one has. Which keys are marked is a
function of the scores alone: with fewer keys, of those that are left.
"""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Graph, Node

from ..analysis.best_keys import mark_best
from ..fx.nodes import arguments, example_tensor, name_of, replace_by_call
from ..fx.sizes import expression

# What makes a tensor of one value, and which.
_CONSTANTS = {"new_ones": 1, "ones": 1, "ones_like": 1, "new_zeros": 0, "zeros": 0, "zeros_like": 0}
_CASTS = {"to", "long", "int"}
_LEADING_THERE = {*_CONSTANTS, *_CASTS, "getitem", "topk"}


def write_best_keys(graph: Graph) -> None:
    """Replace each mask that marks the places of the highest scores by a call of ``mark_best``.

    What puts places into another tensor than one of a single value, or uses them in another way, stays as it is.
    """
    for node in [node for node in graph.nodes if name_of(node) == "scatter"]:
        found = _marked(node)
        if found is not None:
            replace_by_call(node, mark_best, found, lambda each: name_of(each) in _LEADING_THERE)


def _marked(node: Node) -> tuple[Any, ...] | None:
    """Return the arguments of ``mark_best`` that a scatter stands for; None where it is something else."""
    given = arguments(node)
    if len(given) != 4 or isinstance(given[3], Node) or node.kwargs:
        return None
    base, dim, places, value = given
    result = example_tensor(node)
    if result is None or name_of(base) not in _CONSTANTS or dim not in (-1, result.ndim - 1):
        return None
    while name_of(places) in _CASTS:
        places = places.args[0]
    if places.target is not operator.getitem or places.args[1] != 1 or name_of(places.args[0]) != "topk":
        return None
    names = ("self", "k", "dim", "largest", "sorted")
    topk = dict(zip(names, places.args[0].args, strict=False)) | places.args[0].kwargs
    scores = topk.get("input", topk.get("self"))
    shown = example_tensor(scores)
    if shown is None or topk.get("dim", -1) not in (-1, shown.ndim - 1) or not topk.get("largest", True):
        return None
    if list(map(expression, shown.shape)) != list(map(expression, result.shape)):
        return None
    return scores, topk["k"], value, _CONSTANTS[name_of(base)], result.dtype

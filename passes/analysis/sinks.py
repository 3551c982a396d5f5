"""Knows a softmax with sinks: one more logit of each query, which takes a share of its attention and gives nothing.

Models write it as::

    logits = torch.cat([scores, sinks], -1)
    logits = logits - logits.max(-1, keepdim=True).values
    weights = logits.softmax(-1)[..., :-1]

with or without the second line. ``canonicalize.sinks`` writes it as ``softmax_with_sinks``.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..fx.nodes import arguments, example_tensor, example_value
from ..fx.sizes import expression
from ..token_dim.sequence_functions import SEQUENCE_FUNCTIONS

SOFTMAX = {torch.softmax, F.softmax, "softmax"}
_CAT = {torch.cat, torch.concat, torch.concatenate}
_SUB = {torch.sub, operator.sub, "sub"}
# The first result of the former, with the index, is the highest.
_MAX = {torch.max, "max"}
_AMAX = {torch.amax, "amax"}


@dataclass(frozen=True)
class SinkSoftmax:
    """A softmax over ``scores`` ``[B, H, Sq, Sk]`` and the sinks, without the share of the sinks.

    ``sinks`` is ``[1 or B, 1 or H, 1, 1]``: the same for all queries. ``is_shifted`` says that the highest logit is
    subtracted before, which changes the rounding only. ``dtype`` is that of the softmax, None for that of the logits.
    """

    scores: Node
    sinks: Node
    is_shifted: bool
    dtype: torch.dtype | None


def softmax_with_sinks(scores: Tensor, sinks: Tensor, is_shifted: bool, dtype: torch.dtype | None) -> Tensor:
    """Compute what ``SinkSoftmax`` says, ``[B, H, Sq, Sk]``, operator by operator as models do."""
    logits = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], -1)
    if is_shifted:
        logits = logits - logits.max(-1, keepdim=True).values
    return logits.softmax(-1, dtype=dtype)[..., :-1]


# The sinks are no token: over fewer keys it is the softmax of those that are left.
SEQUENCE_FUNCTIONS.add(softmax_with_sinks)


def find_sinks(node: Node) -> SinkSoftmax | None:
    """Return the softmax with sinks whose result ``node`` is; None where it is something else.

    The sinks must be all that is added to the scores and all that is dropped of the weights, and not depend on the
    query.
    """
    if node.target is softmax_with_sinks:
        return SinkSoftmax(*arguments(node))
    softmax = arguments(node)[0] if _drops_last(node) else None
    if softmax is None or softmax.target not in SOFTMAX or len(softmax.args) > 2 or not is_over_last(softmax):
        return None
    unshifted = _unshifted(softmax.args[0])
    joined = unshifted or softmax.args[0]
    if joined.target not in _CAT or not is_over_last(joined) or len(arguments(joined)[0]) != 2:
        return None
    scores, sinks = arguments(joined)[0]
    if not _is_single(sinks, axes=1):
        return None
    while sinks.target == "expand":
        sinks = sinks.args[0]
    value = example_tensor(scores)
    if value is None or value.ndim != example_value(sinks).ndim or not _is_single(sinks, axes=2):
        return None
    return SinkSoftmax(scores, sinks, unshifted is not None, softmax.kwargs.get("dtype"))


def is_over_last(node: Node) -> bool:
    """Return whether an operator works along the last axis of its result; what it works on is its first argument."""
    value = example_tensor(node)
    return value is not None and len(node.args) > 0 and _axis(node) in (-1, value.ndim - 1)


def _axis(node: Node) -> Any:
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)


def _is_single(node: Node, axes: int) -> bool:
    """Return whether each of the last axes of a tensor has one place."""
    value = example_tensor(node)
    return value is not None and all(expression(size) == 1 for size in value.shape[-axes:])


def _drops_last(node: Node) -> bool:
    """Return whether a node takes all of a tensor but the last of its last axis."""
    value = example_tensor(node)
    index = node.args[1] if node.target is operator.getitem else None
    if value is None or not isinstance(index, tuple) or index[-1:] != (slice(None, -1),):
        return False
    return index[:-1] in ((Ellipsis,), (slice(None),) * (value.ndim - 1))


def _unshifted(node: Node) -> Node | None:
    """Return what a node subtracts the highest of its last axis from; None where it does not."""
    if node.target not in _SUB or len(node.args) != 2 or node.kwargs:
        return None
    logits, highest = arguments(node)
    if not isinstance(highest, Node):
        return None
    is_first = highest.target is operator.getitem and highest.args[1] == 0
    reduced, known = (arguments(highest)[0], _MAX) if is_first else (highest, _AMAX)
    if reduced.target not in known or reduced.args[:1] != (logits,):
        return None
    value, of_highest = example_tensor(logits), example_tensor(highest)
    if value is None or of_highest is None or _axis(reduced) not in (-1, value.ndim - 1):
        return None
    is_kept = list(map(expression, of_highest.shape)) == [*map(expression, value.shape[:-1]), 1]
    return logits if is_kept and isinstance(logits, Node) else None

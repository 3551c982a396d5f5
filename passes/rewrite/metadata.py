"""The example values of a rewritten graph: as short as its tensors are, and as the plan promised."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
from collections.abc import Sequence
from typing import Any

from torch import SymFloat, SymInt, Tensor
from torch.fx import Node

from ..fx.nodes import (
    call_target,
    example_value,
    flatten_args,
    format_node,
    on_fakes,
    unflatten_args,
    writes_into_first,
)
from ..fx.sizes import hint
from ..fx.tensor_subclasses import is_wrapper
from ..token_dim.plan import Plans
from ..token_dim.sentinels import SentinelSizes

log = logging.getLogger(__name__)

# With a tensor, of numbers only their type decides what the result looks like.
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv}


def refresh(plans: Plans) -> None:
    """Give the nodes after a cut the values that they have by now.

    A node whose operator can't be run on fake tensors, or that reads from one, has no value afterwards.
    """
    known: dict[Any, Any] = {}
    for node in plans:
        leaves = flatten_args(node)
        values = [example_value(leaf) for leaf in leaves]
        value = None
        if all(value is not None or not isinstance(leaf, Node) for leaf, value in zip(leaves, values, strict=True)):
            # Layers repeat: what calls the same on values that look the same shares its value.
            key = _key(node, values)
            try:
                value = rerun(node) if known.get(key) is None else known[key]
            except Exception as error:
                log.debug("no example value for %s: %s", format_node(node), error)
            if key is not None:
                known[key] = value
        if value is None:
            node.meta.pop("example_value", None)
        else:
            node.meta["example_value"] = value


def _key(node: Node, values: Sequence[Any]) -> Any:
    """Return all that the value of a node may depend on; None where it depends on more, or changes what it is given."""
    if writes_into_first(node) or any(isinstance(value, Tensor) and is_wrapper(value) for value in values):
        return None
    if node.target in _ARITHMETIC and any(isinstance(value, Tensor) for value in values):
        # Each layer's epsilon is a symbol of its own.
        values = [SymFloat if isinstance(value, SymFloat) else value for value in values]
    try:
        key = node.op, node.target, str(unflatten_args(node, [None] * len(values))), tuple(map(_look, values))
        hash(key)
    except TypeError:
        return None
    return key


def _look(value: Any) -> Any:
    if isinstance(value, Tensor):
        layout = (*map(_look, value.shape), *map(_look, value.stride()))
        return value.ndim, layout, value.dtype, value.device, value.requires_grad
    return value.node.expr if isinstance(value, SymInt | SymFloat) else (type(value), value)


def forget(plans: Plans) -> None:
    """Take the values of the nodes after a cut, which are those of the full length."""
    for node in plans:
        node.meta.pop("example_value", None)


def rerun(node: Node) -> object:
    """Return what a node gives for the example values of its arguments; no guard comes of it."""
    values = [example_value(leaf) for leaf in flatten_args(node)]
    if not any(isinstance(value, Tensor) for value in values):  # a length that is computed with
        return call_target(node, *unflatten_args(node, values))
    with on_fakes(values) as mode:
        quiet = contextlib.nullcontext() if mode.shape_env is None else mode.shape_env.suppress_guards()
        with quiet:
            return call_target(node, *unflatten_args(node, values))


def check_shapes(plans: Plans, lengths: Sequence[int], batch: int) -> None:
    """Check that each node after a cut has the shape that its plan promised, and so nothing of the full length.

    Args:
        plans: those of a rewritten graph, whose example values were refreshed.
        lengths: how many tokens there are after each cut, as the graph was traced.
        batch: B, as the graph was traced.

    Raises:
        AssertionError: for a node of another shape, a fault of the passes.
    """
    for node, plan in plans.items():
        value = example_value(node)
        if plan.shape is None or not isinstance(value, Tensor):
            continue
        promised = tuple(_size(size, plans.sentinels, lengths, batch) for size in plan.shape)
        actual = tuple(hint(size) for size in value.shape)
        # A slice of the last few positions takes fewer where there are fewer.
        is_kept = len(actual) == len(promised) and all(
            one == other or (one < other and plans.sentinels.token(size) is None)
            for one, other, size in zip(actual, promised, plan.shape, strict=True)
        )
        assert is_kept, f"{format_node(node)} has the shape {list(actual)}, planned was {list(promised)}"


def _size(size: int, sentinels: SentinelSizes, lengths: Sequence[int], batch: int) -> int:
    """Return the size that stands for one with which a node was probed."""
    axis = sentinels.contents(size)
    tokens = 1 if axis.tokens is None else lengths[sentinels.tokens.index(axis.tokens)] + axis.slack
    return math.prod((axis.copies, tokens, batch if axis.batch else 1))

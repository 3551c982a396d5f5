"""How each node after a cut runs on fewer tokens: what the prover finds and ``rewrite.shrink`` does."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .sentinels import SentinelSizes


@dataclass(frozen=True)
class Gather:
    """A side tensor is read at the kept positions.

    ``stage`` is the number of cuts that the tensor itself is after, ``axes`` its token axes. ``batch_axis``
    is the axis of the rows, None with one row; ``batch_is_new`` says that the axis must be put in front of
    the others. ``merged`` says that the one token axis holds rows and tokens, rows outermost. ``slack_axes`` are
    those of the axes that are padded with unused slots after the tokens; the padding is kept.
    """

    stage: int
    axes: tuple[int, ...]
    batch_axis: int | None = None
    batch_is_new: bool = False
    merged: bool = False
    slack_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Length:
    """An integer that means the full length becomes the new one.

    It is ``times`` that length, times the number of rows if ``times_batch``; if ``is_padded`` it is the length and the
    unused slots after it, which stay.
    """

    times: int = 1
    times_batch: bool = False
    is_padded: bool = False


@dataclass(frozen=True)
class ResizeArange:
    """A tensor that counts from 0 to a length counts to the new length."""

    length: Length


@dataclass(frozen=True)
class Expand:
    """A tensor of fewer tokens is read at the full length: at each position the last kept token that is not after it.

    ``stage`` is the number of cuts that the tensor is after, ``axis`` its token axis, ``batch_axis`` the axis of the
    rows, None with one row.
    """

    stage: int
    axis: int
    batch_axis: int | None


ArgRewrite = Gather | Length | ResizeArange | Expand | None


@dataclass(frozen=True)
class NodePlan:
    """How a node runs after ``stage`` cuts: a rewrite for each leaf of its arguments, None for no change.

    Stage 0 is for nodes that run at full length, on tensors that are expanded to it. ``shape`` is how the result was
    probed, None where it is no single tensor.
    """

    stage: int
    rewrites: tuple[ArgRewrite, ...]
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Returned:
    """A result of a graph that is shortened, by its ``place`` among the results.

    ``stage`` is the number of cuts that it is after, ``axis`` its token axis, ``batch_axis`` that of the rows: None
    with one row, and where the token axis holds the tokens of one row after the other.
    """

    place: int
    stage: int
    axis: int
    batch_axis: int | None


class Plans(dict[Node, NodePlan]):
    """The plans of nodes, in the order of the graph; ``sentinels`` are the lengths that they were probed with."""

    def __init__(self, sentinels: SentinelSizes) -> None:
        super().__init__()
        self.sentinels = sentinels

    def __str__(self) -> str:
        """Return a line for each node: how many cuts it is after, and its rewrites."""
        lines = []
        for node, plan in self.items():
            rewrites = "".join(f", {rewrite}" for rewrite in plan.rewrites if rewrite is not None)
            lines.append(f"{node.name}: stage {plan.stage}{rewrites}")
        return "\n".join(lines)

    def returned(self, node: Any, place: int) -> Returned | None:
        """How the result of a node that the graph returns is shortened; None where it is not, or not by one axis."""
        plan = self.get(node)
        if plan is None or plan.shape is None or not plan.stage:
            return None
        axes = self.sentinels.token_axes(plan.shape)
        if len(axes) != 1:
            return None
        ((axis, holds),) = axes.items()
        if holds.copies != 1 or holds.slack:
            return None
        batch_axes = self.sentinels.batch_axes(plan.shape)
        return Returned(place, plan.stage, axis, batch_axes[0] if batch_axes else None)


def least_tokens(plans: dict[Node, NodePlan]) -> int:
    """How many tokens there must be for what is copied into states of a fixed size, such as a convolution's last."""
    needed = 1
    for node in plans:
        source = node.args[1] if node.target is torch.ops.aten.copy.default else None
        if isinstance(source, Node) and source.target is operator.getitem:
            index = source.args[1] if isinstance(source.args[1], tuple) else (source.args[1],)
            starts = [part.start for part in index if isinstance(part, slice) and isinstance(part.start, int)]
            needed = max([needed, *(-start for start in starts)])
    return needed

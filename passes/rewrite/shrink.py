"""Rewrites the nodes after each cut for fewer tokens, as ``passes.token_dim.solver`` planned it."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...kernels.gather import gather_tokens
from ...kernels.merge import merge_tokens
from ...kernels.multi_gather import multi_gather
from ..fx.emit import Emitter
from ..fx.nodes import example_tensor, fake_mode, flatten_args, unflatten_args
from ..token_dim.plan import ArgRewrite, Expand, Gather, Length, NodePlan, ResizeArange
from .metadata import rerun


@dataclass
class Stage:
    """The tokens after one cut.

    ``positions`` ``[B, N]`` counts in the tokens of the stage before, ``original`` in those of the full
    sequence. ``length`` is N, ``hidden`` the hidden states of the cut at these positions.
    """

    positions: Node
    original: Node
    length: int | Node
    hidden: Node
    gathered: dict[tuple[Node, Gather], Node] = field(default_factory=dict)


class Shrinker:
    """Rewrites a graph, one stage after the other."""

    def __init__(self, emit: Emitter, plans: dict[Node, NodePlan], embeddings: Node, cuts: Sequence[Node]) -> None:
        self.emit, self.plans, self.embeddings, self.cuts = emit, plans, embeddings, cuts
        self.stages: list[Stage] = []
        self.expanded: dict[tuple[Node, Expand], Node] = {}

    def insertion_point(self) -> Node:
        """Return the first node after the next cut: all that belongs to the next stage stands in front of it."""
        return next(node for node, plan in self.plans.items() if plan.stage > len(self.stages))

    def begin_stage(self, positions: Node, length: int | Node, merge_into: Node | None = None) -> None:
        """Begin the next stage: gather its hidden states, and rewrite all nodes of it.

        Args:
            positions: the tokens that are kept, as in ``Stage``.
            length: how many they are.
            merge_into: which token of the stage before stands for each, ``[B, S]``; None where tokens are dropped only.
        """
        before = len(self.stages)
        with self.emit.before(self.insertion_point()):
            original = self.emit(_compose, self.stages[-1].original, positions) if before else positions
            hidden, sides = self._gather_states(positions, original, merge_into)
        self.stages.append(Stage(positions, original, length, hidden, sides))
        for node, plan in self.plans.items():
            if plan.stage == before + 1:
                self._rewrite(node, plan)

    def finish(self) -> None:
        """Rewrite the nodes that run at full length after the last cut."""
        for node, plan in self.plans.items():
            if plan.stage == 0:
                self._rewrite(node, plan)

    def _gather_states(
        self, positions: Node, original: Node, merge_into: Node | None
    ) -> tuple[Node, dict[tuple[Node, Gather], Node]]:
        """Gather the hidden states of the cut, and all side tensors that are there already, in one operator.

        Side tensors count in the tokens of the full sequence: at later cuts the hidden states don't, and are
        gathered apart. So are hidden states whose tokens merge. Tensors with two token axes (masks) are left to
        ``_gathered``.
        """
        before, first = len(self.stages), self.insertion_point()
        there = set(itertools.takewhile(lambda node: node is not first, self.emit.graph.nodes))
        sides = [
            (leaf, rewrite)
            for node, plan in self.plans.items()
            if plan.stage == before + 1
            for leaf, rewrite in zip(flatten_args(node), plan.rewrites, strict=True)
            if isinstance(rewrite, Gather) and isinstance(leaf, Node) and leaf in there and leaf not in self.cuts
            if rewrite.stage == 0 and len(rewrite.axes) == 1 and not rewrite.merged and not rewrite.slack_axes
        ]
        sides = list(dict.fromkeys(sides))
        cut = self.resolve(self.cuts[before], before)
        of_cut = (cut, Gather(before, (1,), 0))
        made: dict[tuple[Node, Gather], Node] = {}
        if merge_into is not None:
            made[of_cut] = self.emit(merge_tokens, cut, positions, merge_into)
            calls = [(original, sides)]
        elif before == 0:
            calls = [(positions, [of_cut, *sides])]
        else:
            calls = [(positions, [of_cut]), (original, sides)]
        for places, wanted in calls:
            if wanted:
                together = _gathering(tuple(_layout(rewrite) for _, rewrite in wanted))
                nodes = self.emit(together, places, *(leaf for leaf, _ in wanted), results=len(wanted))
                made |= zip(wanted, nodes if len(wanted) > 1 else [nodes], strict=True)
        return made.pop(of_cut), made

    def resolve(self, node: Node, stage: int) -> Node:
        """Return what stands for ``node`` at ``stage``: a cut is read as the hidden states gathered there."""
        if node in self.cuts and self.cuts.index(node) < stage:
            return self.stages[self.cuts.index(node)].hidden
        return node

    def _rewrite(self, node: Node, plan: NodePlan) -> None:
        with self.emit.before(node):
            pairs = zip(flatten_args(node), plan.rewrites, strict=True)
            leaves = [self._repaired(leaf, rewrite, plan.stage) for leaf, rewrite in pairs]
        node.args, node.kwargs = unflatten_args(node, leaves)
        if self.emit.trace and 0 < plan.stage < len(self.cuts):
            # The selection of the next stage is traced with what this node holds now.
            node.meta["example_value"] = rerun(node)

    def _repaired(self, leaf: object, rewrite: ArgRewrite, stage: int) -> object:
        if isinstance(rewrite, Length):
            return self._length(leaf, rewrite, stage)
        if isinstance(rewrite, ResizeArange):
            assert isinstance(leaf, Node)
            return self.emit(_count_as, leaf, self._length(None, rewrite.length, stage))
        if not isinstance(leaf, Node):
            return leaf
        if isinstance(rewrite, Expand):
            return self._expanded(leaf, rewrite)
        leaf = self.resolve(leaf, stage)
        return leaf if rewrite is None else self._gathered(leaf, rewrite, stage)

    def _length(self, leaf: object, rewrite: Length, stage: int) -> int | Node:
        length = self.stages[stage - 1].length
        if rewrite.is_padded:
            assert isinstance(leaf, int | Node)
            slack = self.emit.arithmetic(operator.sub, leaf, self.emit.size(self.embeddings, 1))
            return self.emit.arithmetic(operator.add, length, slack)
        length = self.emit.arithmetic(operator.mul, length, rewrite.times)
        if rewrite.times_batch:
            return self.emit.arithmetic(operator.mul, self.emit.size(self.embeddings, 0), length)
        return length

    def _gathered(self, node: Node, rewrite: Gather, stage: int) -> Node:
        """``node`` gathered for ``stage``; each is made once and shared."""
        made = self.stages[stage - 1].gathered
        if (node, rewrite) not in made:
            positions = self._positions(rewrite.stage, stage)
            length = self.stages[rewrite.stage - 1].length if rewrite.stage else self.emit.size(self.embeddings, 1)
            if rewrite.merged:
                made[node, rewrite] = self.emit(take_merged, node, positions, rewrite.axes[0], length)
            else:
                how = (rewrite.axes, rewrite.batch_axis, rewrite.batch_is_new, rewrite.slack_axes)
                made[node, rewrite] = self.emit(take, node, positions, length, *how)
        return made[node, rewrite]

    def _expanded(self, node: Node, rewrite: Expand) -> Node:
        """``node`` at the full length; each is made once, where it is first read, and shared."""
        if (node, rewrite) not in self.expanded:
            kept = self.stages[rewrite.stage - 1].original
            length = self.emit.size(self.embeddings, 1)
            short = self.resolve(node, rewrite.stage)
            if short is node:
                self._note_length(node, rewrite)
            self.expanded[node, rewrite] = self.emit(
                expand_tokens, short, kept, length, rewrite.axis, rewrite.batch_axis
            )
        return self.expanded[node, rewrite]

    def _note_length(self, node: Node, rewrite: Expand) -> None:
        """Have the example value of a rewritten node be as short as the node is."""
        value, kept = example_tensor(node), example_tensor(self.stages[rewrite.stage - 1].original)
        if value is None or kept is None:
            return
        shape = [*value.shape[: rewrite.axis], kept.shape[1], *value.shape[rewrite.axis + 1 :]]
        with fake_mode([value]):
            short = torch.empty(shape, dtype=value.dtype, device=value.device)
            node.meta["example_value"] = short.requires_grad_(value.requires_grad)

    def _positions(self, source: int, stage: int) -> Node:
        """Return the tokens of ``stage``, counted in those of stage ``source``."""
        if source == 0:
            return self.stages[stage - 1].original
        positions = self.stages[source].positions
        for later in self.stages[source + 1 : stage]:
            positions = self.emit(_compose, positions, later.positions)
        return positions


def _compose(first: Tensor, then: Tensor) -> Tensor:
    """Positions ``[B, N]`` in the tokens that ``first`` ``[B, M]`` kept, as positions in what it kept them of."""
    return first.gather(1, then)


def _count_as(like: Tensor, length: int) -> Tensor:
    return torch.arange(length, dtype=like.dtype, device=like.device)


def _layout(rewrite: Gather) -> tuple[int, int | None, bool]:
    return rewrite.axes[0], None if rewrite.batch_is_new else rewrite.batch_axis, rewrite.batch_is_new


def _gathering(layouts: tuple[tuple[int, int | None, bool], ...]) -> Callable[..., Any]:
    """Return a function that gathers several tensors with one token axis each.

    ``layouts`` are, for each, its token axis, its batch axis (None where it has none), and whether the result
    gets one that it had not.
    """

    def take_together(positions: Tensor, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        aligned, shapes = [], []
        for value, (axis, batch_axis, _) in zip(values, layouts, strict=True):
            value = value.unsqueeze(0) if batch_axis is None else value.movedim(batch_axis, 0)
            axis += batch_axis is None or batch_axis > axis
            leading, trailing = value.shape[1:axis], value.shape[axis + 1 :]
            aligned.append(value.reshape(value.shape[0], math.prod(leading), value.shape[axis], math.prod(trailing)))
            shapes.append((leading, trailing))
        results = []
        taken = multi_gather(aligned, positions)
        for result, (leading, trailing), (_, batch_axis, batch_is_new) in zip(taken, shapes, layouts, strict=True):
            result = result.view(result.shape[0], *leading, result.shape[2], *trailing)
            if not batch_is_new:
                result = result.squeeze(0) if batch_axis is None else result.movedim(0, batch_axis)
            results.append(result)
        return tuple(results) if len(results) > 1 else results[0]

    return take_together


def take(
    value: Tensor,
    positions: Tensor,
    length: int,
    axes: tuple[int, ...],
    batch_axis: int | None,
    batch_is_new: bool,
    slack_axes: tuple[int, ...],
) -> Tensor:
    """``value`` at the kept positions of each row, in all of its token axes; slack after ``length`` tokens stays."""
    if batch_is_new:
        value = value.unsqueeze(0)
    for axis in axes:
        places = positions
        if axis in slack_axes:
            slack = torch.arange(length, value.shape[axis + batch_is_new], device=positions.device)
            places = torch.cat([positions, slack.expand(positions.shape[0], -1)], 1)
        value = gather_tokens(value, places, axis + batch_is_new, batch_axis)
    return value


def expand_tokens(value: Tensor, kept: Tensor, length: int, axis: int, batch_axis: int | None) -> Tensor:
    """``value`` of the ``kept`` tokens ``[B, N]`` at all ``length`` positions: the last kept that is not after each.

    Positions before the first kept one, which hold padding, read that one.
    """
    positions = torch.arange(length, device=kept.device).expand(kept.shape[0], -1).contiguous()
    rows = (torch.searchsorted(kept.contiguous(), positions, right=True) - 1).clamp(min=0)
    return gather_tokens(value, rows, axis, batch_axis)


def take_merged(value: Tensor, positions: Tensor, axis: int, length: int) -> Tensor:
    """Return the same for an axis that holds ``length`` tokens of one row after the other."""
    return gather_tokens(value.unflatten(axis, (-1, length)), positions, axis + 1, axis).flatten(axis, axis + 1)

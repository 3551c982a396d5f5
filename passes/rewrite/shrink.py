"""Rewrites the nodes behind each cut for fewer tokens, as `passes.token_dim.solver` planned it."""

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
from ...kernels.gather_together import gather_together
from ...kernels.merge import merge_tokens
from ..fx.emit import Emitter
from ..fx.nodes import example_tensor, fake_mode, leaves_of, with_leaves
from ..token_dim.solver import Expand, Gather, Length, NodePlan, Recount, Repair
from .metadata import rerun


@dataclass
class Stage:
    """The tokens behind one cut.

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

    def first_reader(self) -> Node:
        """The first node behind the next cut: all that belongs to the next stage stands in front of it."""
        return next(node for node, plan in self.plans.items() if plan.stage > len(self.stages))

    def enter(self, positions: Node, length: int | Node, into: Node | None = None) -> None:
        """Begins the next stage: gathers its hidden states, and rewrites all nodes of it.

        Args:
            positions: the tokens that are kept, as in `Stage`.
            length: how many they are.
            into: which token of the stage before stands for each, ``[B, S]``; None where tokens are dropped only.
        """
        before = len(self.stages)
        with self.emit.before(self.first_reader()):
            original = self.emit(_compose, self.stages[-1].original, positions) if before else positions
            hidden, sides = self._gather_together(positions, original, into)
        self.stages.append(Stage(positions, original, length, hidden, sides))
        for node, plan in self.plans.items():
            if plan.stage == before + 1:
                self._rewrite(node, plan)

    def finish(self) -> None:
        """Rewrites the nodes that run at full length behind the last cut."""
        for node, plan in self.plans.items():
            if plan.stage == 0:
                self._rewrite(node, plan)

    def _gather_together(
        self, positions: Node, original: Node, into: Node | None
    ) -> tuple[Node, dict[tuple[Node, Gather], Node]]:
        """Gathers the hidden states of the cut, and all side tensors that are there already, in one operator.

        Side tensors count in the tokens of the full sequence: at later cuts the hidden states don't, and are
        gathered apart. So are hidden states whose tokens merge. Tensors with two token axes (masks) are left to
        `_gathered`.
        """
        before, first = len(self.stages), self.first_reader()
        there = set(itertools.takewhile(lambda node: node is not first, self.emit.graph.nodes))
        sides = [
            (leaf, repair)
            for node, plan in self.plans.items()
            if plan.stage == before + 1
            for leaf, repair in zip(leaves_of(node), plan.repairs, strict=True)
            if isinstance(repair, Gather) and isinstance(leaf, Node) and leaf in there and leaf not in self.cuts
            if repair.stage == 0 and len(repair.axes) == 1 and not repair.merged and not repair.roomy
        ]
        sides = list(dict.fromkeys(sides))
        cut = self.read(self.cuts[before], before)
        of_cut = (cut, Gather(before, (1,), 0))
        made: dict[tuple[Node, Gather], Node] = {}
        if into is not None:
            made[of_cut] = self.emit(merge_tokens, cut, positions, into)
            calls = [(original, sides)]
        elif before == 0:
            calls = [(positions, [of_cut, *sides])]
        else:
            calls = [(positions, [of_cut]), (original, sides)]
        for places, wanted in calls:
            if wanted:
                together = _taking_together(tuple(_layout(repair) for _, repair in wanted))
                nodes = self.emit(together, places, *(leaf for leaf, _ in wanted), results=len(wanted))
                made |= zip(wanted, nodes if len(wanted) > 1 else [nodes], strict=True)
        return made.pop(of_cut), made

    def read(self, node: Node, stage: int) -> Node:
        """What stands for `node` at `stage`: a cut is read as the hidden states gathered there."""
        if node in self.cuts and self.cuts.index(node) < stage:
            return self.stages[self.cuts.index(node)].hidden
        return node

    def _rewrite(self, node: Node, plan: NodePlan) -> None:
        with self.emit.before(node):
            pairs = zip(leaves_of(node), plan.repairs, strict=True)
            leaves = [self._repaired(leaf, repair, plan.stage) for leaf, repair in pairs]
        node.args, node.kwargs = with_leaves(node, leaves)
        if self.emit.trace and 0 < plan.stage < len(self.cuts):
            # The selection of the next stage is traced with what this node holds now.
            node.meta["example_value"] = rerun(node)

    def _repaired(self, leaf: object, repair: Repair, stage: int) -> object:
        if isinstance(repair, Length):
            return self._length(leaf, repair, stage)
        if isinstance(repair, Recount):
            assert isinstance(leaf, Node)
            return self.emit(_count_as, leaf, self._length(None, repair.length, stage))
        if not isinstance(leaf, Node):
            return leaf
        if isinstance(repair, Expand):
            return self._expanded(leaf, repair)
        leaf = self.read(leaf, stage)
        return leaf if repair is None else self._gathered(leaf, repair, stage)

    def _length(self, leaf: object, repair: Length, stage: int) -> int | Node:
        length = self.stages[stage - 1].length
        if repair.roomy:
            assert isinstance(leaf, int | Node)
            room = self.emit.arithmetic(operator.sub, leaf, self.emit.size(self.embeddings, 1))
            return self.emit.arithmetic(operator.add, length, room)
        length = self.emit.arithmetic(operator.mul, length, repair.times)
        if repair.rows:
            return self.emit.arithmetic(operator.mul, self.emit.size(self.embeddings, 0), length)
        return length

    def _gathered(self, node: Node, repair: Gather, stage: int) -> Node:
        """`node` gathered for `stage`; each is made once and shared."""
        made = self.stages[stage - 1].gathered
        if (node, repair) not in made:
            positions = self._positions(repair.stage, stage)
            length = self.stages[repair.stage - 1].length if repair.stage else self.emit.size(self.embeddings, 1)
            if repair.merged:
                made[node, repair] = self.emit(take_merged, node, positions, repair.axes[0], length)
            else:
                how = (repair.axes, repair.batch_axis, repair.batch_is_new, repair.roomy)
                made[node, repair] = self.emit(take, node, positions, length, *how)
        return made[node, repair]

    def _expanded(self, node: Node, repair: Expand) -> Node:
        """`node` at the full length; each is made once, where it is first read, and shared."""
        if (node, repair) not in self.expanded:
            kept = self.stages[repair.stage - 1].original
            length = self.emit.size(self.embeddings, 1)
            short = self.read(node, repair.stage)
            if short is node:
                self._note_length(node, repair)
            self.expanded[node, repair] = self.emit(expand_tokens, short, kept, length, repair.axis, repair.batch_axis)
        return self.expanded[node, repair]

    def _note_length(self, node: Node, repair: Expand) -> None:
        """Has the example value of a rewritten node be as short as the node is."""
        value, kept = example_tensor(node), example_tensor(self.stages[repair.stage - 1].original)
        if value is None or kept is None:
            return
        shape = [*value.shape[: repair.axis], kept.shape[1], *value.shape[repair.axis + 1 :]]
        with fake_mode([value]):
            short = torch.empty(shape, dtype=value.dtype, device=value.device)
            node.meta["example_value"] = short.requires_grad_(value.requires_grad)

    def _positions(self, source: int, stage: int) -> Node:
        """The tokens of `stage`, counted in those of stage `source`."""
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


def _layout(repair: Gather) -> tuple[int, int | None, bool]:
    return repair.axes[0], None if repair.batch_is_new else repair.batch_axis, repair.batch_is_new


def _taking_together(layouts: tuple[tuple[int, int | None, bool], ...]) -> Callable[..., Any]:
    """A function that gathers several tensors with one token axis each.

    ``layouts`` are, for each, its token axis, its batch axis (None where it has none), and whether the result
    gets one that it had not.
    """

    def take_together(positions: Tensor, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        aligned, shapes = [], []
        for value, (axis, batch_axis, _) in zip(values, layouts, strict=True):
            value = value.unsqueeze(0) if batch_axis is None else value.movedim(batch_axis, 0)
            axis += batch_axis is None or batch_axis > axis
            ahead, behind = value.shape[1:axis], value.shape[axis + 1 :]
            aligned.append(value.reshape(value.shape[0], math.prod(ahead), value.shape[axis], math.prod(behind)))
            shapes.append((ahead, behind))
        results = []
        taken = gather_together(aligned, positions)
        for result, (ahead, behind), (_, batch_axis, batch_is_new) in zip(taken, shapes, layouts, strict=True):
            result = result.view(result.shape[0], *ahead, result.shape[2], *behind)
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
    roomy: tuple[int, ...],
) -> Tensor:
    """``value`` at the kept positions of each row, along all of its token axes; room behind ``length`` tokens stays."""
    if batch_is_new:
        value = value.unsqueeze(0)
    for axis in axes:
        places = positions
        if axis in roomy:
            room = torch.arange(length, value.shape[axis + batch_is_new], device=positions.device)
            places = torch.cat([positions, room.expand(positions.shape[0], -1)], 1)
        value = gather_tokens(value, places, axis + batch_is_new, batch_axis)
    return value


def expand_tokens(value: Tensor, kept: Tensor, length: int, axis: int, batch_axis: int | None) -> Tensor:
    """``value`` of the ``kept`` tokens ``[B, N]`` at all ``length`` positions: the last kept that is not behind each.

    Positions before the first kept one, which hold padding, read that one.
    """
    positions = torch.arange(length, device=kept.device).expand(kept.shape[0], -1).contiguous()
    rows = (torch.searchsorted(kept.contiguous(), positions, right=True) - 1).clamp(min=0)
    return gather_tokens(value, rows, axis, batch_axis)


def take_merged(value: Tensor, positions: Tensor, axis: int, length: int) -> Tensor:
    """The same for an axis that holds ``length`` tokens of one row after the other."""
    return gather_tokens(value.unflatten(axis, (-1, length)), positions, axis + 1, axis).flatten(axis, axis + 1)

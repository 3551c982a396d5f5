"""The ways in which a leaf of a node's arguments may be handed over after a cut: what the prover tries out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ..fx.nodes import example_value
from ..fx.sizes import expression
from ..fx.tensor_subclasses import kind_of, plain_tensors
from .plan import ArgRewrite, Gather, Length, ResizeArange
from .sentinels import SentinelSizes, orders_in

_MAX_TIMES = 64  # tokens are copied, for each of so many experts


@dataclass(frozen=True)
class Candidate:
    """One way to hand over one leaf: the rewrite, the value to probe with, and whether that is changed."""

    value: Any
    rewrite: ArgRewrite = None
    changed: bool = False

    def signature(self) -> str:
        """Return all that a node's behaviour may depend on."""
        leaves = [
            (kind_of(leaf), [_layout(part) for part in (leaf, *plain_tensors(leaf))])
            if isinstance(leaf, Tensor)
            else leaf
            for leaf in tree_leaves(self.value)
        ]
        return str((leaves, self.rewrite, self.changed))


@dataclass(frozen=True)
class CandidateRewrites:
    """Makes candidates.

    Attributes:
        sizes: the primes that are probed with.
        length: S.
        batch: B.
        padded_lengths: sizes of axes that hold the S tokens and, after them, unused slots; with the number of these.
        mode: of the fake tensors.
    """

    sizes: SentinelSizes
    length: sympy.Expr
    batch: sympy.Expr
    padded_lengths: Mapping[sympy.Expr, int]
    mode: FakeTensorMode

    def of_integer(self, size: sympy.Expr, stage: int) -> Iterator[Candidate]:
        """Yield the lengths of a stage that an integer may mean."""
        prime, batch = self.sizes.tokens[stage - 1], self.sizes.batch
        if size in self.padded_lengths:
            yield Candidate(prime + self.padded_lengths[size], Length(is_padded=True), True)
        if times := _quotient(size, self.length):
            yield Candidate(times * prime, Length(times), True)
        if batch and size == self.batch:
            yield Candidate(batch, None, True)
        if batch and (times := _quotient(size, self.batch * self.length)):
            yield Candidate(times * batch * prime, Length(times, times_batch=True), True)

    def of_count(self, size: sympy.Expr, like: Tensor, stage: int) -> Iterator[Candidate]:
        """``arange(size)`` that is put in places by content, as for the inverse of a permutation: no positions."""
        for candidate in self.of_integer(size, stage):
            if isinstance(candidate.rewrite, Length):
                yield Candidate(self.empty((candidate.value,), like), ResizeArange(candidate.rewrite), True)

    def of_side_tensor(self, node: Node, value: Tensor, source: int, stage: int) -> Iterator[Candidate]:
        """Yield the ways to read a side tensor at a stage: each set of its axes that may be tokens, with its rows.

        Args:
            node: the tensor in the graph.
            value: the same, as it is probed with.
            source: the stage that it is after.
            stage: the stage that it is read at.
        """
        if source:
            slots = {self.sizes.tokens[source - 1] + slack: slack for slack in (0, *self.sizes.slacks)}
            sizes: list[Any] = list(value.shape)
            length: Any = self.sizes.tokens[source - 1]
            batch: Any = self.sizes.batch or 1
        else:
            slots = {self.length: 0, **self.padded_lengths}
            sizes = [expression(size) for size in example_value(node).shape]
            length, batch = self.length, self.batch
        tokens = [axis for axis, size in enumerate(sizes) if size in slots]
        batch_axes = [axis for axis, size in enumerate(sizes) if self.sizes.batch and size == batch]
        for count in range(len(tokens) + 1):
            for axes in itertools.combinations(tokens, count):
                slacks = {axis: slots[sizes[axis]] for axis in axes}
                yield from self._with_axes(value, source, stage, slacks, batch_axes)
        if self.sizes.batch:
            prime, shape = self.sizes.tokens[stage - 1], list(value.shape)
            for axis, size in enumerate(sizes):
                if size == batch * length:
                    shorter = [*shape[:axis], self.sizes.batch * prime, *shape[axis + 1 :]]
                    yield Candidate(self.empty(shorter, value), Gather(source, (axis,), axis, merged=True), True)

    def _with_axes(
        self, value: Tensor, source: int, stage: int, slacks: Mapping[int, int], batch_axes: Sequence[int]
    ) -> Iterator[Candidate]:
        """Yield the ways to read a side tensor of which certain axes are tokens: by the axis that the rows are in.

        ``slacks`` are the unused slots after the tokens of each of these axes.
        """
        batch, prime, shape, axes = self.sizes.batch, self.sizes.tokens[stage - 1], list(value.shape), tuple(slacks)
        shorter = [prime + slacks[axis] if axis in slacks else size for axis, size in enumerate(shape)]
        slack_axes = tuple(axis for axis in axes if slacks[axis])
        if batch is None:
            if axes:
                yield Candidate(self.empty(shorter, value), Gather(source, axes, slack_axes=slack_axes), True)
            return
        ones = [axis for axis, size in enumerate(shape) if size == 1] if axes else []
        for axis in [*batch_axes, *ones]:
            if axis not in axes:
                rewrite = Gather(source, axes, axis, slack_axes=slack_axes) if axes else None
                with_batch = self.empty([*shorter[:axis], batch, *shorter[axis + 1 :]], value)
                yield Candidate(with_batch, rewrite, True)
        if axes and not batch_axes:
            rewrite = Gather(source, axes, 0, batch_is_new=True, slack_axes=slack_axes)
            yield Candidate(self.empty([batch, *shorter], value), rewrite, True)

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a fake tensor of a shape, else like another."""
        with self.mode:
            return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    orders = [(size, sorted(known)) for size, known in orders_in(tensor).items()]
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, orders


def _quotient(size: sympy.Expr, of: sympy.Expr) -> int | None:
    """Return how many times ``of`` is in ``size``; None where that is no small whole number. -1 counts from the end."""
    times = size / of
    return int(times) if times.is_Integer and (0 < times <= _MAX_TIMES or times == -1) else None

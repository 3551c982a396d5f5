"""Sizes that occur nowhere else in a graph, by which the prover tells what an axis holds.

Nodes are run on fake tensors whose token axes have a prime length, one for each stage of pruning, and whose batch axis
has another. What is in an axis is read off its size: a size that merely happens to equal the sequence length can't be
mistaken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import sympy
from torch import SymInt, Tensor
from torch.fx import Graph
from torch.utils._pytree import tree_leaves

from ..fx.nodes import example_value, flatten_args
from ..fx.sizes import hint
from ..fx.tensor_subclasses import plain_tensors

_ORDERS = "sharp_orders"  # an attribute of fake tensors

Layout = tuple[tuple[int, int], ...]
"""Where tokens and rows lie in memory order: pairs of a prime and its stride in elements."""

Orders = Mapping[int, Set[Layout]]
"""What is known of axes that hold tokens and more: by the size of an axis, in which layouts it may hold them."""


@dataclass(frozen=True)
class DimContents:
    """What an axis holds, by its size: rows of the batch, tokens and copies of each (heads, experts), in some order.

    ``tokens`` is the length of the tokens, None where there are none; ``slack`` is how many unused slots are after
    them. ``copies`` is what remains of the size.
    """

    tokens: int | None
    copies: int
    batch: bool
    slack: int = 0


def orders_in(tensor: Tensor) -> Orders:
    """Return what is known of the merged axes of a fake tensor that was probed with."""
    orders: Orders = getattr(tensor, _ORDERS, {})
    return orders


def note_orders(tensor: Tensor, orders: Orders) -> None:
    """Have a fake tensor tell what is known of its merged axes."""
    setattr(tensor, _ORDERS, {size: orders[size] for size in tensor.shape if size in orders})


@dataclass(frozen=True)
class SentinelSizes:
    """The prime lengths that mark axes: one for tokens at each stage of pruning, one for the batch.

    ``batch`` is None where the batch has one row. An axis may hold unused slots after the tokens: ``slacks`` are for
    how many. ``full_length`` is the length before all cuts.
    """

    tokens: tuple[int, ...]
    batch: int | None
    full_length: int
    slacks: tuple[int, ...] = ()

    def contents(self, size: int) -> DimContents:
        """Return what is in an axis of this size."""
        if size == 0:  # of which every prime is a divisor
            return DimContents(None, 0, False)
        batch = bool(self.batch and size % self.batch == 0)
        others = size // self.batch if self.batch and batch else size
        for prime in self.tokens:
            if others % prime == 0:
                return DimContents(prime, others // prime, batch)
            if others - prime in self.slacks:
                return DimContents(prime, 1, batch, others - prime)
        return DimContents(None, others, batch)

    def token(self, size: int) -> int | None:
        """Return the length of the tokens in an axis of this size; None where it holds none."""
        return self.contents(size).tokens

    def token_axes(self, shape: Sequence[int] | None) -> dict[int, DimContents]:
        """Return the axes of a shape that hold tokens, with what they hold; none for no shape."""
        read = {axis: self.contents(size) for axis, size in enumerate(shape or ())}
        return {axis: holds for axis, holds in read.items() if holds.tokens}

    def batch_axes(self, shape: Sequence[int]) -> list[int]:
        """Return the axes of a shape that are the rows of the batch."""
        return [axis for axis, size in enumerate(shape) if size == self.batch]

    def layouts(self, shape: Sequence[int], orders: Orders) -> dict[Layout, set[tuple[int, Layout]]]:
        """Return where tokens and rows may lie in memory, each with the orders in which axes then hold them.

        Args:
            shape: of a contiguous tensor.
            orders: what is known of the order within an axis, by its size. Of others any order is possible in which
                rows are outside of tokens.

        Returns:
            For each layout, pairs of the size of an axis and of the layout in it.
        """
        found: list[tuple[Layout, set[tuple[int, Layout]]]] = [((), set())]
        stride = 1
        for size in reversed(shape):
            found = [
                (before + tuple((prime, stride * inner) for prime, inner in order), {*choices, (size, order)})
                for before, choices in found
                for order in orders.get(size) or self._orders_within(size)
            ]
            stride *= size or 1
        together: dict[Layout, set[tuple[int, Layout]]] = {}
        for layout, choices in found:
            together.setdefault(tuple(sorted(layout)), set()).update(choices)
        return together

    def _orders_within(self, size: int) -> list[Layout]:
        axis = self.contents(size)
        if not axis.tokens and not axis.batch:
            return [()]
        found: list[Layout] = []
        for inside in _divisors(axis.copies):
            tokens = ((axis.tokens, inside),) if axis.tokens else ()
            if not axis.batch or self.batch is None:
                found.append(tokens)
                continue
            length = axis.tokens + axis.slack if axis.tokens else 1
            between = _divisors(axis.copies // inside) if axis.tokens else [1]
            found += [(*tokens, (self.batch, inside * length * each)) for each in between]
        return found


def choose_sentinels(
    graph: Graph, stages: int, length: int, batch: int | None, slacks: tuple[int, ...]
) -> SentinelSizes:
    """Choose primes that divide no size and no integer of a graph; those for tokens are longer than the sequence.

    Args:
        graph: what they are to be unused in.
        stages: how many lengths of tokens there are.
        length: S, as the graph was traced.
        batch: B, as the graph was traced; None for one row.
        slacks: see ``SentinelSizes``.
    """
    used: set[int] = set()
    for node in graph.nodes:
        for leaf in [*tree_leaves(example_value(node)), *flatten_args(node)]:
            tensors = [leaf, *plain_tensors(leaf)] if isinstance(leaf, Tensor) else []
            sizes = [size for tensor in tensors for size in tensor.shape] or [leaf]
            used.update(abs(hint(size)) for size in sizes if isinstance(size, int | SymInt))
    used.discard(0)

    def unused_above(number: int) -> int:
        prime = sympy.nextprime(number)
        while any(size % prime == 0 or size - prime in slacks for size in used):
            prime = sympy.nextprime(prime)
        return prime

    primes = [max(10_000, 2 * length)]
    for _ in range(stages):
        primes.append(unused_above(primes[-1]))
    used.update(prime + slack for prime in primes[1:] for slack in slacks)
    return SentinelSizes(tuple(primes[1:]), None if batch is None else unused_above(max(100, batch)), length, slacks)


def _divisors(number: int) -> list[int]:
    return [int(each) for each in sympy.divisors(number)]

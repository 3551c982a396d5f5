"""Proves what it takes to run the nodes behind a cut on fewer tokens.

Every node that computes with data from behind the cut is run on fake tensors whose token axes have a
length that occurs nowhere else in the graph: a prime. (The batch axis gets another one, unless the batch
has one row.) A node that was traced for the full length then fails, or gives a shape that does not
correspond to the traced one, until it is repaired:

* an integer in its arguments that means the full length becomes the new length;
* a *side* tensor, which was computed apart from the hidden states at the full length (rotary tables, masks,
  position ids), is gathered at the kept positions along the axes that make the node valid.

A coincidence of sizes can't validate a repair, since nothing else has the prime's length. Exactly one
minimal set of repairs must be valid, and `passes.token_dim.op_rules` must know every operator inside: else the
pass declines. Nothing here touches Dynamo's `ShapeEnv`; all sizes are plain integers.

The *tail* of a graph is what comes after the last decoder layer: a head, a loss, pooling. Two more things are known to
be right there:

* a node that addresses tokens by position (an index, a partial slice) reads the full length again, each dropped
  position as the last kept one before it, and runs as it was traced;
* a sum or mean over tokens is one over the kept tokens, and so is one of a side tensor (the count that a masked mean
  is divided by).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import operator
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import SymFloat, SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves, tree_map

from ..analysis.attention import deferred_attention, is_sdpa, sdpa_arguments
from ..errors import CannotPrune
from ..fx.nodes import (
    example,
    example_tensor,
    is_one_number,
    leaves_of,
    name_of,
    run,
    stand_in,
    where,
    with_leaves,
    writes_into_first,
)
from ..fx.sizes import expression, hint
from ..fx.tensor_subclasses import is_wrapper, kind_of, plain_tensors
from .op_rules import WRITES_INTO_OLDER, AtPositions, Axis, Marks, Refused, TokenRules
from .sequence_functions import SEQUENCE_FUNCTIONS

log = logging.getLogger(__name__)

_MOST_TRIALS = 4096
# What sums up an axis, by the names of functions and methods.
_POOLING = {"sum", "mean", "amax", "amin", "any", "all"}
_ARITHMETIC = {"add", "sub", "mul", "multiply", "truediv", "div", "divide", "true_divide", "floordiv", "floor_divide"}
_MOST_TIMES = 64  # tokens are copied, for each of so many experts


@dataclass(frozen=True)
class Gather:
    """A side tensor is read at the kept positions.

    ``stage`` is the number of cuts that the tensor itself is behind, ``axes`` its token axes. ``batch_axis``
    is the axis of the rows, None with one row; ``batch_is_new`` says that the axis must be put in front of
    the others. ``merged`` says that the one token axis holds rows and tokens, rows outermost. ``roomy`` are
    those of the axes that hold room for more tokens behind the tokens, which stays.
    """

    stage: int
    axes: tuple[int, ...]
    batch_axis: int | None = None
    batch_is_new: bool = False
    merged: bool = False
    roomy: tuple[int, ...] = ()


@dataclass(frozen=True)
class Length:
    """An integer that means the full length becomes the new one.

    It is ``times`` that length, times the number of rows if ``rows``; with ``roomy`` the length and room behind
    it, which stays.
    """

    times: int = 1
    rows: bool = False
    roomy: bool = False


@dataclass(frozen=True)
class Recount:
    """A tensor that counts from 0 to a length counts to the new length."""

    length: Length


@dataclass(frozen=True)
class Expand:
    """A tensor of fewer tokens is read at the full length: at each position the last kept token that is not behind it.

    ``stage`` is the number of cuts that the tensor is behind, ``axis`` its token axis, ``batch_axis`` the axis of the
    rows, None with one row.
    """

    stage: int
    axis: int
    batch_axis: int | None


Repair = Gather | Length | Recount | Expand | None


@dataclass(frozen=True)
class NodePlan:
    """How a node runs behind ``stage`` cuts: a repair for each leaf of its arguments, None for no change.

    Stage 0 is for nodes that run at full length, on tensors that are expanded to it. ``shape`` is how the result was
    probed, None where it is no single tensor.
    """

    stage: int
    repairs: tuple[Repair, ...]
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Returned:
    """A result of a graph that is shortened, by its ``place`` among the results.

    ``stage`` is the number of cuts that it is behind, ``axis`` its token axis, ``batch_axis`` that of the rows: None
    with one row, and where the token axis holds the tokens of one row after the other.
    """

    place: int
    stage: int
    axis: int
    batch_axis: int | None


class Plans(dict[Node, NodePlan]):
    """The plans of nodes, in the order of the graph; ``marks`` are the lengths that they were probed with."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks

    def __str__(self) -> str:
        """A line for each node: how many cuts it is behind, and its repairs."""
        lines = [
            f"{node.name}: stage {plan.stage}" + "".join(f", {repair}" for repair in plan.repairs if repair is not None)
            for node, plan in self.items()
        ]
        return "\n".join(lines)

    def returned(self, node: Any, place: int) -> Returned | None:
        """How the result of a node that the graph returns is shortened; None where it is not, or not by one axis."""
        plan = self.get(node)
        axes = [] if plan is None or not plan.stage else _token_axes(plan.shape, self.marks)
        if plan is None or plan.shape is None or len(axes) != 1 or axes[0][1].copies != 1 or axes[0][1].room:
            return None
        rows = _row_axes(plan.shape, self.marks)
        return Returned(place, plan.stage, axes[0][0], rows[0] if rows else None)


@dataclass(frozen=True)
class _Choice:
    """One way to hand over one leaf: the repair, the value to probe with, and whether that is changed."""

    value: Any
    repair: Repair = None
    changed: bool = False


def probe(
    graph: Graph,
    embeddings: Node,
    cuts: Sequence[Node],
    capacities: Collection[int | SymInt] = (),
    tokenwise: Collection[Node] = (),
    tail: Collection[Node] = (),
) -> Plans:
    """Plans every node behind the first of `cuts`.

    Args:
        graph: the graph as Dynamo made it; it is only read.
        embeddings: the node ``[B, S, C]`` that shows the full length and the number of rows.
        cuts: the nodes ``[B, S, C]`` of hidden states behind which there are to be fewer tokens, in order.
        capacities: sizes of axes that hold the S tokens and, behind them, room for more (of static caches).
        tokenwise: nodes behind the first cut that must treat each token for itself (see `passes.rewrite.early_gather`).
        tail: nodes after the last decoder layer.

    Returns:
        A plan for each node behind the first cut, in the order of the graph.

    Raises:
        CannotPrune: where a node can't be proven right with fewer tokens.
    """
    plans = _Probe(graph, embeddings, cuts, capacities, tokenwise, tail).run()
    repairs = Counter(type(repair).__name__ for plan in plans.values() for repair in plan.repairs if repair is not None)
    log.info("%d nodes behind %d cuts: %s", len(plans), len(cuts), dict(repairs))
    return plans


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


class _Probe:
    def __init__(
        self,
        graph: Graph,
        embeddings: Node,
        cuts: Sequence[Node],
        capacities: Collection[int | SymInt],
        tokenwise: Collection[Node],
        tail: Collection[Node],
    ) -> None:
        self.graph, self.cuts, self.tokenwise, self.tail = graph, cuts, tokenwise, tail
        self.mode = FakeTensorMode()
        rows, length, channels = example(embeddings).shape
        self.length, self.rows = expression(length), expression(rows)
        self.length_hint, self.rows_hint, self.channels = hint(length), hint(rows), hint(channels)
        self.capacities = {expression(size): hint(size) - self.length_hint for size in capacities}
        self.capacities.pop(self.length, None)
        self.marks = _unused_primes(
            graph,
            len(cuts),
            self.length_hint,
            None if rows == 1 else self.rows_hint,
            tuple(self.capacities.values()),
        )
        self.stages: dict[Node, int] = {}
        self.values: dict[Node, Any] = {}
        self.pooled: set[Node] = set()
        self.memo: dict[Any, tuple[tuple[Repair, ...], Any]] = {}

    def run(self) -> Plans:
        plans = Plans(self.marks)
        for node in self.graph.nodes:
            if node.op == "output":
                continue
            stage = max((self._stage_read(parent) for parent in node.all_input_nodes), default=0)
            is_pooled = self._pools_side(node, stage)
            if is_pooled:
                stage = len(self.cuts)
            if stage == 0:
                continue
            try:
                repairs, value = self._plan(node, stage, is_pooled)
            except _AtPositions as reason:
                plans[node] = NodePlan(0, self._expansions(node, reason))
                continue
            self.stages[node], self.values[node] = stage, value
            if not self.pooled.isdisjoint(node.all_input_nodes):
                self._check_no_count(node)
                self.pooled.add(node)
            elif is_pooled or self._pools(node, value):
                self.pooled.add(node)
            plans[node] = NodePlan(stage, repairs, tuple(value.shape) if isinstance(value, Tensor) else None)
        return plans

    def _pools(self, node: Node, result: Any) -> bool:
        """Whether a node sums up kept tokens."""
        leaf = leaves_of(node)[0]
        of = self._value(leaf, self._stage_read(leaf)) if name_of(node) in _POOLING and isinstance(leaf, Node) else None
        if not isinstance(of, Tensor) or not isinstance(result, Tensor):
            return False
        return len(_token_axes(of.shape, self.marks)) > len(_token_axes(result.shape, self.marks))

    def _check_no_count(self, node: Node) -> None:
        """Declines a number of tokens that goes with a sum of the kept ones: it may have been counted in any way."""
        for leaf in leaves_of(node) if name_of(node) in _ARITHMETIC else ():
            number = example(leaf)
            if isinstance(number, SymInt | SymFloat):
                counts = bool(number.node.expr.free_symbols & self.length.free_symbols)
            else:
                is_number = isinstance(number, int | float) and not isinstance(number, bool)
                counts = is_number and abs(number) >= self.length_hint and number % self.length_hint == 0
            if counts:
                raise CannotPrune(
                    f"{where(node)} puts {number} together with a sum over the kept tokens: it may be a number of all "
                    "tokens; take a mean, or sum up a mask"
                )

    def _pools_side(self, node: Node, stage: int) -> bool:
        """Whether a node of the tail sums up the tokens of a side tensor."""
        if stage or node not in self.tail or name_of(node) not in _POOLING:
            return False
        of, result = (example_tensor(each) for each in (leaves_of(node)[0], node))
        if of is None or result is None:
            return False
        lengths = {self.length, self.rows * self.length}
        before, after = (sum(expression(size) in lengths for size in value.shape) for value in (of, result))
        return before > after

    def _expansions(self, node: Node, reason: _AtPositions) -> tuple[Repair, ...]:
        """What a node of the tail reads that runs at full length, as it was traced."""
        repairs: list[Repair] = []
        for leaf in leaves_of(node):
            if not isinstance(leaf, Node) or self._stage_read(leaf) == 0:
                repairs.append(None)
                continue
            stage = self._stage_read(leaf)
            value = self._value(leaf, stage)
            axes = _token_axes(value.shape, self.marks) if isinstance(value, Tensor) else []
            rows = _row_axes(value.shape, self.marks) if isinstance(value, Tensor) else []
            is_plain = len(axes) == 1 and axes[0][1].copies == 1 and not axes[0][1].room and not axes[0][1].rows
            if not axes and isinstance(value, Tensor) and leaf not in self.pooled:
                repairs.append(None)
            elif is_plain and len(rows) == (self.marks.batch is not None):
                repairs.append(Expand(stage, axes[0][0], rows[0] if rows else None))
            else:
                raise CannotPrune(str(reason))
        return tuple(repairs)

    def _is_side(self, leaf: Any) -> bool:
        """Whether a leaf was computed before the cuts, or apart from them."""
        return isinstance(leaf, Node) and (leaf in self.cuts or leaf not in self.stages)

    def _stage_read(self, node: Node) -> int:
        """The number of cuts that what a user reads from `node` is behind; a cut is read behind itself."""
        return self.cuts.index(node) + 1 if node in self.cuts else self.stages.get(node, 0)

    def _plan(self, node: Node, stage: int, is_pooled: bool) -> tuple[tuple[Repair, ...], Any]:
        leaves = leaves_of(node)
        choices = [list(self._choices(leaf, stage, _is_counted(node, leaf))) for leaf in leaves]
        if is_pooled:
            # As it stands it would be right as well, and sum up tokens that the hidden states have lost.
            choices[0] = [choice for choice in choices[0] if isinstance(choice.repair, Gather)]
        # Layers repeat: a node whose arguments look like an earlier one's has its plan.
        structure = str(with_leaves(node, [None] * len(leaves)))
        seen = [(self._is_side(leaf), *map(_signature, chosen)) for leaf, chosen in zip(leaves, choices, strict=True)]
        where_it_is = (node in self.tokenwise, node in self.tail)
        key = (
            node.op,
            node.target,
            stage,
            where_it_is,
            structure,
            tuple(seen),
            str(tree_map(_describe, example(node))),
        )
        if key not in self.memo:
            self.memo[key] = self._search(node, choices)
        return self.memo[key]

    def _search(self, node: Node, choices: list[list[_Choice]]) -> tuple[tuple[Repair, ...], Any]:
        """The one minimal set of repairs with which `node` runs and gives the shape that it should."""
        target = leaves_of(node)[0]
        if writes_into_first(node) and self._is_side(target) and not is_one_number(target):
            raise CannotPrune(f"{where(node)} can't be proven right with fewer tokens: {WRITES_INTO_OLDER}")
        if math.prod(map(len, choices)) > _MOST_TRIALS:
            raise CannotPrune(f"{where(node)} has too many arguments that may hold a sequence length")
        found: list[tuple[frozenset[int], tuple[_Choice, ...], Any]] = []
        made_after, in_tail = _is_made_after(node), node in self.tail
        refusal: Exception | None = None
        for chosen in sorted(itertools.product(*choices), key=lambda chosen: sum(c.changed for c in chosen)):
            changed = frozenset(i for i, choice in enumerate(chosen) if choice.changed)
            if not made_after and any(smaller < changed for smaller, _, _ in found):
                continue
            try:
                result = self._attempt(node, chosen)
                if made_after:
                    self._check_made_after(node, chosen[0].value, result)
                found.append((changed, chosen, result))
            except Exception as error:  # whatever a node raises on sizes that do not fit it
                if refusal is None or isinstance(error, Refused) > isinstance(refusal, Refused):
                    refusal = error
        if len(found) != 1:
            why = str(refusal).split("\n")[0] if not found else "there are several ways in which the sizes fit"
            raises = _AtPositions if in_tail and not found and isinstance(refusal, AtPositions) else CannotPrune
            raise raises(f"{where(node)} can't be proven right with fewer tokens: {why}")
        _, chosen, result = found[0]
        return tuple(choice.repair for choice in chosen), result

    def _attempt(self, node: Node, chosen: Sequence[_Choice]) -> Any:
        """Runs `node`; raises where it fails or gives another shape than it should."""
        args, kwargs = with_leaves(node, [choice.value for choice in chosen])
        side = [
            choice.value
            for choice, leaf in zip(chosen, leaves_of(node), strict=True)
            if isinstance(choice.value, Tensor) and self._is_side(leaf)
        ]
        with torch.no_grad(), self.mode, _quiet():
            alone = node in self.tokenwise
            if node.target is deferred_attention:
                self._check_attend(*args)
                result = run(node, args, kwargs)
            elif is_sdpa(node) or node.target in SEQUENCE_FUNCTIONS:
                if alone:
                    raise Refused("it mixes tokens")
                if is_sdpa(node):
                    self._check_sdpa(**sdpa_arguments(args, kwargs))
                result = run(node, args, kwargs)
            else:
                with TokenRules(self.marks, side, alone, node in self.tail):
                    result = run(node, args, kwargs)
        self._check_shapes(example(node), result)
        return result

    def _check_sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        **_: Any,
    ) -> None:
        """Fused attention does not check all sizes on fake tensors; this does."""
        if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
            raise Refused("query, key and value have other lengths or channels")
        if query.shape[:-3] != key.shape[:-3] or key.shape[:-3] != value.shape[:-3]:
            raise Refused("query, key and value have other numbers of rows")
        if is_causal and key.shape[-2] - query.shape[-2] not in (0, *self.marks.rooms):
            raise Refused("causal attention has more keys than queries: a cache that holds tokens already")
        if attn_mask is not None:
            attn_mask.expand(*query.shape[:-1], key.shape[-2])

    def _check_attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Kept tokens attend to all tokens."""
        if self.marks.token(key.shape[-2]) or not self.marks.token(query.shape[-2]):
            raise Refused("it is not attention of the kept tokens to all")
        self._check_sdpa(query, key, value, mask)

    def _check_shapes(self, traced: Any, probed: Any) -> None:
        """`probed` must be `traced` with the full length and the rows replaced by their primes."""
        old, new = tree_leaves(traced), tree_leaves(probed)
        if len(old) != len(new):
            raise Refused("it returns another number of results")
        for before, after in zip(old, new, strict=True):
            if isinstance(before, Tensor):
                right = before.ndim == after.ndim and before.dtype == after.dtype
                right = right and all(map(self._corresponds, before.shape, after.shape))
            else:
                right = self._corresponds(before, after)
            if not right:
                raise Refused(f"its result becomes {_describe(after)}, {_describe(before)} was traced")

    def _check_made_after(self, node: Node, first: Tensor, result: Tensor) -> None:
        """A new tensor has tokens where the one that it is made after has them, if their axes are of one size."""
        traced = zip(example(leaves_of(node)[0]).shape, example(node).shape, strict=False)
        for axis, (size, of_result) in enumerate(traced):
            before, after = self.marks.read(first.shape[axis]), self.marks.read(result.shape[axis])
            alike = expression(size) == expression(of_result)
            if alike and (before.tokens, before.rows) != (after.tokens, after.rows):
                raise Refused("a new tensor has its tokens elsewhere than the one that it is made after")

    def _corresponds(self, before: Any, after: Any) -> bool:
        if isinstance(before, int | SymInt):
            axis = self.marks.read(after)
            length = self.length_hint + axis.room if axis.tokens else 1
            after = axis.copies * length * (self.rows_hint if axis.rows else 1)
        return bool(hint(before) == after)

    # What a leaf of a node's arguments may be handed over as.

    def _choices(self, leaf: Any, stage: int, counts: bool = False) -> Iterator[_Choice]:
        if isinstance(leaf, Node) and counts:
            # Counts that are put in places by content (the inverse of a permutation) are no positions.
            value = self._value(leaf, 0)
            for choice in self._lengths(expression(example(leaf).shape[0]), stage):
                if isinstance(choice.repair, Length):
                    yield _Choice(self._empty((choice.value,), value), Recount(choice.repair), True)
        elif isinstance(leaf, Node):
            source = self._stage_read(leaf)
            value = self._value(leaf, source)
            yield _Choice(value)
            if source < stage and isinstance(value, Tensor) and not is_wrapper(value):
                yield from self._gathers(leaf, value, source, stage)
            elif source < stage and isinstance(value, int):
                yield from self._lengths(expression(example(leaf)), stage)
        else:
            yield _Choice(leaf)
            if isinstance(leaf, int) and not isinstance(leaf, bool):
                yield from self._lengths(sympy.Integer(leaf), stage)

    def _value(self, node: Node, source: int) -> Any:
        """What a user of `node` reads, on fake tensors."""
        traced = example(node)
        if node in self.cuts:
            return self._empty((self.marks.batch or 1, self.marks.tokens[source - 1], self.channels), traced)
        if node in self.stages or not isinstance(traced, Tensor):
            return self.values[node] if node in self.stages else hint(traced)
        if node not in self.values:
            self.values[node] = stand_in(traced, self.mode)
        return self.values[node]

    def _empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        with self.mode:
            return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)

    def _lengths(self, size: sympy.Expr, stage: int) -> Iterator[_Choice]:
        prime, batch = self.marks.tokens[stage - 1], self.marks.batch
        if size in self.capacities:
            yield _Choice(prime + self.capacities[size], Length(roomy=True), True)
        if times := _quotient(size, self.length):
            yield _Choice(times * prime, Length(times), True)
        if batch and size == self.rows:
            yield _Choice(batch, None, True)
        if batch and (times := _quotient(size, self.rows * self.length)):
            yield _Choice(times * batch * prime, Length(times, rows=True), True)

    def _gathers(self, node: Node, value: Tensor, source: int, stage: int) -> Iterator[_Choice]:
        """The ways to read a side tensor at `stage`: each set of its axes that may be tokens, with its rows."""
        batch, prime, shape = self.marks.batch, self.marks.tokens[stage - 1], list(value.shape)
        length: Any
        rows: Any
        sizes: list[Any]
        if source:
            length, rows, sizes = self.marks.tokens[source - 1], batch or 1, shape
        else:
            length, rows, sizes = self.length, self.rows, [expression(s) for s in example(node).shape]
        rooms = {length: 0}
        if source:
            rooms |= {length + room: room for room in self.marks.rooms}
        else:
            rooms |= self.capacities
        tokens = [axis for axis, size in enumerate(sizes) if size in rooms]
        row_axes = [axis for axis, size in enumerate(sizes) if batch and size == rows]
        for count in range(len(tokens) + 1):
            for axes in itertools.combinations(tokens, count):
                shorter = [prime + rooms[sizes[axis]] if axis in axes else size for axis, size in enumerate(shape)]
                roomy = tuple(axis for axis in axes if sizes[axis] != length)
                if batch is None:
                    if axes:
                        yield _Choice(self._empty(shorter, value), Gather(source, axes, roomy=roomy), True)
                    continue
                ones = [axis for axis, size in enumerate(shape) if size == 1] if axes else []
                for axis in row_axes + ones:
                    if axis not in axes:
                        repair = Gather(source, axes, axis, roomy=roomy) if axes else None
                        yield _Choice(self._empty([*shorter[:axis], batch, *shorter[axis + 1 :]], value), repair, True)
                if axes and not row_axes:
                    yield _Choice(
                        self._empty([batch, *shorter], value),
                        Gather(source, axes, 0, batch_is_new=True, roomy=roomy),
                        True,
                    )
        if batch:
            for axis, size in enumerate(sizes):
                if size == rows * length:
                    shorter = [*shape[:axis], batch * prime, *shape[axis + 1 :]]
                    yield _Choice(self._empty(shorter, value), Gather(source, (axis,), axis, merged=True), True)


class _AtPositions(CannotPrune):
    """A node of the tail addresses tokens by position."""


def _token_axes(shape: Sequence[int] | None, marks: Marks) -> list[tuple[int, Axis]]:
    read = [(axis, marks.read(size)) for axis, size in enumerate(shape or ())]
    return [(axis, holds) for axis, holds in read if holds.tokens]


def _row_axes(shape: Sequence[int], marks: Marks) -> list[int]:
    return [axis for axis, size in enumerate(shape) if size == marks.batch]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log each operator that fails; failing is how a probe learns. Other threads may log theirs."""
    logger, thread = logging.getLogger("torch._subclasses.fake_tensor"), threading.get_ident()

    def is_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(is_others)
    try:
        yield
    finally:
        logger.removeFilter(is_others)


def _unused_primes(graph: Graph, stages: int, length: int, rows: int | None, rooms: tuple[int, ...]) -> Marks:
    """Primes that divide no size and no integer of `graph`; those for tokens are longer than the sequence."""
    used: set[int] = set()
    for node in graph.nodes:
        for leaf in [*tree_leaves(example(node)), *leaves_of(node)]:
            tensors = [leaf, *plain_tensors(leaf)] if isinstance(leaf, Tensor) else []
            sizes = [size for tensor in tensors for size in tensor.shape] or [leaf]
            used.update(abs(hint(size)) for size in sizes if isinstance(size, int | SymInt))
    used.discard(0)

    def unused_above(number: int) -> int:
        prime = sympy.nextprime(number)
        while any(size % prime == 0 or size - prime in rooms for size in used):
            prime = sympy.nextprime(prime)
        return prime

    primes = [max(10_000, 2 * length)]
    for _ in range(stages):
        primes.append(unused_above(primes[-1]))
    used.update(prime + room for prime in primes[1:] for room in rooms)
    return Marks(tuple(primes[1:]), None if rows is None else unused_above(max(100, rows)), length, rooms)


def _quotient(size: sympy.Expr, of: sympy.Expr) -> int | None:
    """How many times `of` is in `size`; None where that is no small whole number. -1 counts from the end."""
    times = size / of
    return int(times) if times.is_Integer and (0 < times <= _MOST_TIMES or times == -1) else None


def _is_made_after(node: Node) -> bool:
    """Whether a node makes a new tensor of sizes that it is told: any would do, so they prove nothing."""
    return node.op == "call_method" and str(node.target).startswith("new_")


def _is_counted(node: Node, leaf: Any) -> bool:
    """Whether `leaf` is ``arange(n)`` that `node` puts in places which are data."""
    is_put = node.target is torch.ops.aten.index_put.default and leaf is node.args[2]
    return is_put and leaf.target is torch.arange and len(leaf.args) == 1


def _signature(choice: _Choice) -> str:
    """All of a choice that a node's behaviour may depend on."""
    leaves = [
        (kind_of(leaf), [(part.shape, part.stride(), part.dtype, part.device) for part in (leaf, *plain_tensors(leaf))])
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in tree_leaves(choice.value)
    ]
    return str((leaves, choice.repair, choice.changed))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{[str(size) for size in value.shape]}"
    return str(value)

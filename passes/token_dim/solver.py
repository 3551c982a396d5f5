"""Proves what it takes to run the nodes after a cut on fewer tokens.

Every node that computes with data from after the cut is run on fake tensors whose token axes have a
length that occurs nowhere else in the graph: a prime. (The batch axis gets another one, unless the batch
has one row.) A node that was traced for the full length then fails, or gives a shape that does not
correspond to the traced one, until its arguments are rewritten (``candidates`` has the ways, ``plan`` what is found):

* an integer in its arguments that means the full length becomes the new length;
* a *side* tensor, which was computed apart from the hidden states at the full length (rotary tables, masks,
  position ids), is gathered at the kept positions along the axes that make the node valid.

A coincidence of sizes can't validate a rewrite, since nothing else has the prime's length. Exactly one
minimal set of rewrites must be valid, and ``passes.token_dim.op_rules`` must know every operator inside: else the
pass declines. Nothing here touches Dynamo's ``ShapeEnv``; all sizes are plain integers.

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
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import SymFloat, SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves, tree_map

from ..analysis.attention import attend_to, check_sdpa, deferred_attention, find_attention_op
from ..errors import CannotPrune, PositionalOp, UnsupportedOp
from ..fx.nodes import (
    call_target,
    example_tensor,
    example_value,
    fake_like,
    flatten_args,
    format_node,
    is_one_number,
    name_of,
    unflatten_args,
    writes_into_first,
)
from ..fx.sizes import expression, hint
from ..fx.tensor_subclasses import is_wrapper
from .candidates import Candidate, CandidateRewrites
from .op_rules import WRITES_INTO_OLDER, TokenRules
from .plan import ArgRewrite, Expand, Gather, NodePlan, Plans
from .sentinels import choose_sentinels
from .sequence_functions import SEQUENCE_FUNCTIONS

log = logging.getLogger(__name__)

_MAX_TRIALS = 4096
# What sums up an axis, by the names of functions and methods.
_POOLING = {"sum", "mean", "amax", "amin", "any", "all"}
_ARITHMETIC = {"add", "sub", "mul", "multiply", "truediv", "div", "divide", "true_divide", "floordiv", "floor_divide"}


def probe(
    graph: Graph,
    embeddings: Node,
    cuts: Sequence[Node],
    padded_lengths: Collection[int | SymInt] = (),
    pointwise: Collection[Node] = (),
    tail: Collection[Node] = (),
) -> Plans:
    """Plan every node after the first of ``cuts``.

    Args:
        graph: the graph as Dynamo made it; it is only read.
        embeddings: the node ``[B, S, C]`` that shows the full length and the number of rows.
        cuts: the nodes ``[B, S, C]`` of hidden states after which there are to be fewer tokens, in order.
        padded_lengths: sizes of axes that hold the S tokens and, after them, unused slots (of static caches).
        pointwise: nodes after the first cut that must treat each token for itself (see
            ``passes.rewrite.early_gather``).
        tail: nodes after the last decoder layer.

    Returns:
        A plan for each node after the first cut, in the order of the graph.

    Raises:
        CannotPrune: where a node can't be proven right with fewer tokens.
    """
    plans = _Probe(graph, embeddings, cuts, padded_lengths, pointwise, tail).run()
    rewrites = Counter(
        type(rewrite).__name__ for plan in plans.values() for rewrite in plan.rewrites if rewrite is not None
    )
    log.info("%d nodes after %d cuts: %s", len(plans), len(cuts), dict(rewrites))
    return plans


class _Probe:
    def __init__(
        self,
        graph: Graph,
        embeddings: Node,
        cuts: Sequence[Node],
        padded_lengths: Collection[int | SymInt],
        pointwise: Collection[Node],
        tail: Collection[Node],
    ) -> None:
        self.graph, self.cuts, self.pointwise, self.tail = graph, cuts, pointwise, tail
        self.mode = FakeTensorMode()
        batch, length, channels = example_value(embeddings).shape
        self.length, self.batch = expression(length), expression(batch)
        self.length_hint, self.batch_hint, self.channels = hint(length), hint(batch), hint(channels)
        slacks = {expression(size): hint(size) - self.length_hint for size in padded_lengths}
        slacks.pop(self.length, None)
        rows = None if batch == 1 else self.batch_hint
        self.sizes = choose_sentinels(graph, len(cuts), self.length_hint, rows, tuple(slacks.values()))
        self.candidates = CandidateRewrites(self.sizes, self.length, self.batch, slacks, self.mode)
        self.stages: dict[Node, int] = {}
        self.values: dict[Node, Any] = {}
        self.pooled: set[Node] = set()
        self.memo: dict[Any, tuple[tuple[ArgRewrite, ...], Any]] = {}

    def run(self) -> Plans:
        plans = Plans(self.sizes)
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
                rewrites, value = self._plan(node, stage, is_pooled)
            except _Positional as reason:
                plans[node] = NodePlan(0, self._expansions(node, reason))
                continue
            self.stages[node], self.values[node] = stage, value
            if not self.pooled.isdisjoint(node.all_input_nodes):
                self._check_no_count(node)
                self.pooled.add(node)
            elif is_pooled or self._pools(node, value):
                self.pooled.add(node)
            elif node not in self.tail and isinstance(value, Tensor):
                self._check_no_length(node)
            plans[node] = NodePlan(stage, rewrites, tuple(value.shape) if isinstance(value, Tensor) else None)
        self._check_no_copies_attended(plans)
        return plans

    def _check_no_copies_attended(self, plans: Plans) -> None:
        """Decline attention to tokens at the full length, as of a decoder to its encoder's: each copy would count."""
        expanded = {node for node, plan in plans.items() if any(isinstance(each, Expand) for each in plan.rewrites)}
        for node in attend_to(self.graph, expanded) if expanded else ():
            if node not in self.stages:
                raise CannotPrune(
                    f"{format_node(node)} attends to tokens of an encoder by positions in the whole sequence: each "
                    "dropped one would count as a copy of a kept one"
                )

    def _pools(self, node: Node, result: Any) -> bool:
        """Return whether a node sums up kept tokens."""
        leaf = flatten_args(node)[0]
        of = self._value(leaf, self._stage_read(leaf)) if name_of(node) in _POOLING and isinstance(leaf, Node) else None
        if not isinstance(of, Tensor) or not isinstance(result, Tensor):
            return False
        return len(self.sizes.token_axes(of.shape)) > len(self.sizes.token_axes(result.shape))

    def _check_no_count(self, node: Node) -> None:
        """Decline a number of tokens that goes with a sum of the kept ones: it may have been counted in any way."""
        for number, counts in self._numbers_in(node):
            if not counts and isinstance(number, int | float) and not isinstance(number, bool):
                counts = abs(number) >= self.length_hint and number % self.length_hint == 0
            if counts:
                raise CannotPrune(
                    f"{format_node(node)} puts {number} together with a sum over the kept tokens: it may be a number "
                    "of all tokens; take a mean, or sum up a mask"
                )

    def _check_no_length(self, node: Node) -> None:
        """Decline a layer that computes with the number of tokens: it would be another one in a shorter sequence."""
        for number, is_length in self._numbers_in(node):
            if is_length or (isinstance(number, int) and number == self.length_hint > 1):
                raise CannotPrune(
                    f"{format_node(node)} computes with {number}, the number of tokens of the whole sequence: what a "
                    "shorter one would take in its place is not known"
                )

    def _numbers_in(self, node: Node) -> Iterator[tuple[Any, bool]]:
        """Yield what a node of arithmetic computes with, each with whether it is a symbol of the length."""
        for leaf in flatten_args(node) if name_of(node) in _ARITHMETIC else ():
            number = example_value(leaf)
            is_symbol = isinstance(number, SymInt | SymFloat)
            yield number, is_symbol and bool(number.node.expr.free_symbols & self.length.free_symbols)

    def _pools_side(self, node: Node, stage: int) -> bool:
        """Return whether a node of the tail sums up the tokens of a side tensor."""
        if stage or node not in self.tail or name_of(node) not in _POOLING:
            return False
        of, result = (example_tensor(each) for each in (flatten_args(node)[0], node))
        if of is None or result is None:
            return False
        lengths = {self.length, self.batch * self.length}
        before, after = (sum(expression(size) in lengths for size in value.shape) for value in (of, result))
        return before > after

    def _expansions(self, node: Node, reason: _Positional) -> tuple[ArgRewrite, ...]:
        """Return what a node of the tail reads that runs at full length, as it was traced."""
        rewrites: list[ArgRewrite] = []
        for leaf in flatten_args(node):
            if not isinstance(leaf, Node) or self._stage_read(leaf) == 0:
                rewrites.append(None)
                continue
            stage = self._stage_read(leaf)
            value = self._value(leaf, stage)
            if not isinstance(value, Tensor):
                raise CannotPrune(str(reason))
            axes, batch_axes = self.sizes.token_axes(value.shape), self.sizes.batch_axes(value.shape)
            holds = next(iter(axes.values()), None)
            is_plain = (
                len(axes) == 1 and holds is not None and (holds.copies, holds.slack, holds.batch) == (1, 0, False)
            )
            if not axes and leaf not in self.pooled:
                rewrites.append(None)
            elif is_plain and len(batch_axes) == (self.sizes.batch is not None):
                rewrites.append(Expand(stage, next(iter(axes)), batch_axes[0] if batch_axes else None))
            else:
                raise CannotPrune(str(reason))
        return tuple(rewrites)

    def _is_side(self, leaf: Any) -> bool:
        """Return whether a leaf was computed before the cuts, or apart from them."""
        return isinstance(leaf, Node) and (leaf in self.cuts or leaf not in self.stages)

    def _stage_read(self, node: Node) -> int:
        """Return the number of cuts that what a user reads from ``node`` is after; a cut is read after itself."""
        return self.cuts.index(node) + 1 if node in self.cuts else self.stages.get(node, 0)

    def _plan(self, node: Node, stage: int, is_pooled: bool) -> tuple[tuple[ArgRewrite, ...], Any]:
        leaves = flatten_args(node)
        choices = [list(self._candidates_of(leaf, stage, _is_counted(node, leaf))) for leaf in leaves]
        if is_pooled:
            # As it stands it would be right as well, and sum up tokens that the hidden states have lost.
            choices[0] = [choice for choice in choices[0] if isinstance(choice.rewrite, Gather)]
        # Layers repeat: a node whose arguments look like an earlier one's has its plan.
        structure = str(unflatten_args(node, [None] * len(leaves)))
        of_leaves = tuple(
            (self._is_side(leaf), *(candidate.signature() for candidate in candidates))
            for leaf, candidates in zip(leaves, choices, strict=True)
        )
        what = node.op, node.target, structure, str(tree_map(_describe, example_value(node)))
        key = *what, stage, node in self.pointwise, node in self.tail, of_leaves
        if key not in self.memo:
            self.memo[key] = self._search(node, choices)
        return self.memo[key]

    def _search(self, node: Node, choices: list[list[Candidate]]) -> tuple[tuple[ArgRewrite, ...], Any]:
        """Return the one minimal set of rewrites with which ``node`` runs and gives the shape that it should."""
        target = flatten_args(node)[0]
        if writes_into_first(node) and self._is_side(target) and not is_one_number(target):
            raise CannotPrune(f"{format_node(node)} can't be proven right with fewer tokens: {WRITES_INTO_OLDER}")
        if math.prod(map(len, choices)) > _MAX_TRIALS:
            raise CannotPrune(f"{format_node(node)} has too many arguments that may hold a sequence length")
        found: list[tuple[frozenset[int], tuple[Candidate, ...], Any]] = []
        made_after, in_tail = _is_made_after(node), node in self.tail
        refusal: Exception | None = None
        for chosen in sorted(itertools.product(*choices), key=lambda chosen: sum(c.changed for c in chosen)):
            changed = frozenset(i for i, choice in enumerate(chosen) if choice.changed)
            if not made_after and any(smaller < changed for smaller, _, _ in found):
                continue
            try:
                result = self._try_candidate(node, chosen)
                if made_after:
                    self._check_made_after(node, chosen[0].value, result)
                found.append((changed, chosen, result))
            except Exception as error:  # whatever a node raises on sizes that do not fit it
                if refusal is None or isinstance(error, UnsupportedOp) > isinstance(refusal, UnsupportedOp):
                    refusal = error
        if len(found) != 1:
            why = str(refusal).split("\n")[0] if not found else "there are several ways in which the sizes fit"
            raises = _Positional if in_tail and not found and isinstance(refusal, PositionalOp) else CannotPrune
            raise raises(f"{format_node(node)} can't be proven right with fewer tokens: {why}")
        _, chosen, result = found[0]
        return tuple(choice.rewrite for choice in chosen), result

    def _try_candidate(self, node: Node, chosen: Sequence[Candidate]) -> Any:
        """Run ``node``; raise where it fails or gives another shape than it should."""
        args, kwargs = unflatten_args(node, [choice.value for choice in chosen])
        side = [
            choice.value
            for choice, leaf in zip(chosen, flatten_args(node), strict=True)
            if isinstance(choice.value, Tensor) and self._is_side(leaf)
        ]
        with torch.no_grad(), self.mode, _quiet():
            pointwise = node in self.pointwise
            attention = find_attention_op(node)
            if node.target is deferred_attention:
                self._check_deferred(*args)
                result = call_target(node, args, kwargs)
            elif attention is not None or node.target in SEQUENCE_FUNCTIONS:
                if pointwise:
                    raise UnsupportedOp("it mixes tokens")
                if attention is not None:
                    attention.check(self.sizes, args, kwargs)
                result = call_target(node, args, kwargs)
            else:
                with TokenRules(self.sizes, side, pointwise, node in self.tail):
                    result = call_target(node, args, kwargs)
        self._check_shapes(example_value(node), result)
        return result

    def _check_deferred(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *_: Any) -> None:
        """Kept tokens attend to all tokens."""
        if self.sizes.token(key.shape[-2]) or not self.sizes.token(query.shape[-2]):
            raise UnsupportedOp("it is not attention of the kept tokens to all")
        check_sdpa(self.sizes, query, key, value, mask)

    def _check_shapes(self, traced: Any, probed: Any) -> None:
        """``probed`` must be ``traced`` with the full length and the rows replaced by their primes."""
        old, new = tree_leaves(traced), tree_leaves(probed)
        if len(old) != len(new):
            raise UnsupportedOp("it returns another number of results")
        for before, after in zip(old, new, strict=True):
            if isinstance(before, Tensor):
                right = before.ndim == after.ndim and before.dtype == after.dtype
                right = right and all(map(self._corresponds, before.shape, after.shape))
            else:
                right = self._corresponds(before, after)
            if not right:
                raise UnsupportedOp(f"its result becomes {_describe(after)}, {_describe(before)} was traced")

    def _check_made_after(self, node: Node, first: Tensor, result: Tensor) -> None:
        """A new tensor has tokens where the one that it is made after has them, if their axes are of one size."""
        traced = zip(example_value(flatten_args(node)[0]).shape, example_value(node).shape, strict=False)
        for axis, (size, of_result) in enumerate(traced):
            before, after = (self.sizes.contents(value.shape[axis]) for value in (first, result))
            alike = expression(size) == expression(of_result)
            if alike and (before.tokens, before.batch) != (after.tokens, after.batch):
                raise UnsupportedOp("a new tensor has its tokens elsewhere than the one that it is made after")

    def _corresponds(self, before: Any, after: Any) -> bool:
        if isinstance(before, int | SymInt):
            axis = self.sizes.contents(after)
            length = self.length_hint + axis.slack if axis.tokens else 1
            after = axis.copies * length * (self.batch_hint if axis.batch else 1)
        return bool(hint(before) == after)

    def _candidates_of(self, leaf: Any, stage: int, is_count: bool) -> Iterator[Candidate]:
        """Yield what a leaf of a node's arguments may be handed over as."""
        if isinstance(leaf, Node) and is_count:
            size = expression(example_value(leaf).shape[0])
            yield from self.candidates.of_count(size, self._value(leaf, 0), stage)
        elif isinstance(leaf, Node):
            source = self._stage_read(leaf)
            value = self._value(leaf, source)
            yield Candidate(value)
            if source < stage and isinstance(value, Tensor) and not is_wrapper(value):
                yield from self.candidates.of_side_tensor(leaf, value, source, stage)
            elif source < stage and isinstance(value, int):
                yield from self.candidates.of_integer(expression(example_value(leaf)), stage)
        else:
            yield Candidate(leaf)
            if isinstance(leaf, int) and not isinstance(leaf, bool):
                yield from self.candidates.of_integer(sympy.Integer(leaf), stage)

    def _value(self, node: Node, source: int) -> Any:
        """Return what a user of ``node`` reads, on fake tensors."""
        traced = example_value(node)
        if node in self.cuts:
            shape = self.sizes.batch or 1, self.sizes.tokens[source - 1], self.channels
            return self.candidates.empty(shape, traced)
        if node in self.stages or not isinstance(traced, Tensor):
            return self.values[node] if node in self.stages else hint(traced)
        if node not in self.values:
            self.values[node] = fake_like(traced, self.mode)
        return self.values[node]


class _Positional(CannotPrune):
    """A node of the tail addresses tokens by position."""


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


def _is_made_after(node: Node) -> bool:
    """Return whether a node makes a new tensor of sizes that it is told: any would do, so they prove nothing."""
    return node.op == "call_method" and str(node.target).startswith("new_")


def _is_counted(node: Node, leaf: Any) -> bool:
    """Return whether ``leaf`` is ``arange(n)`` that ``node`` puts in places which are data."""
    is_put = node.target is torch.ops.aten.index_put.default and leaf is node.args[2]
    return is_put and leaf.target is torch.arange and len(leaf.args) == 1


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{[str(size) for size in value.shape]}"
    return str(value)

"""Which ATen operators may see a tensor that holds tokens, and how.

The shrink pass changes how many tokens a tensor holds. That is right for operators that treat tokens one
by one (element-wise, norms and products over channels) or that mix them in the way of attention (a softmax
or a contraction over tokens). It is wrong for operators that address tokens by position: an index, a
partial slice, a write into a buffer. So operators are allowed by name, and an unknown one is declined.

Tokens are recognised by size. The pass runs a node on fake tensors whose token axes have a prime length
that occurs nowhere else in the graph, and likewise the batch axis: see `passes.token_dim.solver`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..fx.nodes import ONE_NUMBER
from ..fx.tensor_subclasses import is_wrapper, plain_tensors
from ..held_positions import HELD_POSITIONS
from .sequence_functions import SEQUENCE_FUNCTIONS, TOKEN_FUNCTIONS

aten = torch.ops.aten


WRITES_INTO_OLDER = (
    "it writes into a tensor that was made before the cut, such as a preallocated (static) cache; use the default "
    "dynamic cache"
)


class Refused(Exception):
    """An operator was applied to tokens in a way that is not known to stay right with fewer of them."""


class AtPositions(Refused):
    """An operator addresses tokens by their positions in the whole sequence."""


@dataclass(frozen=True)
class Axis:
    """What an axis holds, by its size: rows, tokens and copies of each token (heads, experts), in some order.

    ``tokens`` is the length of the tokens, None where there are none; ``room`` is for how many more. ``copies`` is what
    remains of the size.
    """

    tokens: int | None
    copies: int
    rows: bool
    room: int = 0


@dataclass(frozen=True)
class Marks:
    """The prime lengths that mark the axes: one for tokens at each stage of pruning, one for the batch.

    ``batch`` is None where the batch has one row. An axis may hold room for some more tokens behind the tokens:
    ``rooms`` are for how many. ``full`` is the length before all cuts.
    """

    tokens: tuple[int, ...]
    batch: int | None
    full: int
    rooms: tuple[int, ...] = ()

    def read(self, size: int) -> Axis:
        """What is in an axis of this size."""
        rows = bool(self.batch and size % self.batch == 0)
        others = size // self.batch if self.batch and rows else size
        for prime in self.tokens:
            if others % prime == 0:
                return Axis(prime, others // prime, rows)
            if others - prime in self.rooms:
                return Axis(prime, 1, rows, others - prime)
        return Axis(None, others, rows)

    def token(self, size: int) -> int | None:
        """The length of the tokens in an axis of this size; None where it holds none."""
        return self.read(size).tokens

    def layouts(self, shape: Iterable[int]) -> set[tuple[tuple[int, int], ...]]:
        """Where tokens and rows may lie in memory order: sorted pairs of (prime, stride in elements).

        An axis may merge what it holds in several ways: rows are outside of tokens, copies anywhere.
        """
        found: list[tuple[tuple[int, int], ...]] = [()]
        stride = 1
        for size in reversed(tuple(shape)):
            found = [before + here for before in found for here in self._layouts_of_axis(size, stride)]
            stride *= size
        return {tuple(sorted(pairs)) for pairs in found}

    def _layouts_of_axis(self, size: int, stride: int) -> list[tuple[tuple[int, int], ...]]:
        axis = self.read(size)
        if not axis.tokens and not axis.rows:
            return [()]
        found: list[tuple[tuple[int, int], ...]] = []
        for inside in _divisors(axis.copies):
            tokens = ((axis.tokens, stride * inside),) if axis.tokens else ()
            if not axis.rows or self.batch is None:
                found.append(tokens)
                continue
            length = axis.tokens + axis.room if axis.tokens else 1
            between = _divisors(axis.copies // inside) if axis.tokens else [1]
            found += [(*tokens, (self.batch, stride * inside * length * each)) for each in between]
        return found


def _divisors(number: int) -> list[int]:
    return [int(each) for each in sympy.divisors(number)]


class TokenRules(TorchDispatchMode):
    """Runs operators, and raises `Refused` for one that must not see tokens the way it does."""

    def __init__(self, marks: Marks, read_only: Iterable[Tensor] = (), alone: bool = False, tail: bool = False) -> None:
        """Takes the lengths that mark axes, the tensors that no operator may write into, and what tokens are for.

        With ``alone`` each token must be treated for itself: no attention, nor anything that mixes tokens in its way.
        With ``tail`` they have left the decoder: kept ones may be summed up, and the last n are not the last kept n.
        """
        super().__init__()
        self.marks = marks
        self.alone = alone
        self.tail = tail
        self.read_only = {plain.untyped_storage()._cdata for tensor in read_only for plain in plain_tensors(tensor)}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Checks one operator, then runs it."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(map(is_wrapper, tensors)):
            # Its class runs other operators instead, which come here one by one.
            return NotImplemented
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        for argument in func._schema.arguments:
            written = named.get(argument.name)
            if not argument.is_write or not isinstance(written, Tensor):
                continue
            if written.shape not in ONE_NUMBER and written.untyped_storage()._cdata in self.read_only:
                raise Refused(WRITES_INTO_OLDER)
        result = func(*args, **kwargs)
        moves_rows = _RULES.get(func.overloadpacket) is TokenRules.reshape and self.marks.batch
        if moves_rows or any(self._token_axes(each) for each in tensors):
            self._rule(func)(self, func, named, result)
            if self.alone:
                self._check_alone(func, named)
        return result

    def _token_axes(self, value: Tensor) -> list[int]:
        return [axis for axis, size in enumerate(value.shape) if self.marks.token(size)]

    def _check_alone(self, func: Any, given: dict[str, Any]) -> None:
        packet = func.overloadpacket
        mixes = packet in _ATTENTION or packet in SEQUENCE_FUNCTIONS
        if packet in _SOFTMAX:
            mixes = given["dim"] % given["self"].ndim in self._token_axes(given["self"])
        elif packet in _CONTRACTED:
            value = given[_CONTRACTED[packet]]
            mixes = value.ndim - 1 in self._token_axes(value)
        elif packet is aten.slice:
            mixes = (given.get("start") or 0) < 0 and given.get("dim", 0) % given["self"].ndim in self._token_axes(
                given["self"]
            )
        if mixes:
            raise Refused(f"{func} mixes tokens")

    def _rule(self, func: Any) -> Callable[..., None]:
        rule = _RULES.get(func.overloadpacket)
        known = SEQUENCE_FUNCTIONS | TOKEN_FUNCTIONS
        if rule is None and (torch.Tag.pointwise in func.tags or func.overloadpacket in known):
            rule = TokenRules.allowed
        if rule is None:
            raise Refused(f"{func} is not known to be right for fewer tokens")
        return rule

    # The rules. Each takes the operator, its arguments by name, and its result on fake tensors.

    def allowed(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """Each token for itself, or tokens mixed as attention does."""

    def reshape(self, func: Any, given: dict[str, Any], result: Tensor) -> None:
        """Tokens and rows must stay where they are in memory order."""
        if not self.marks.layouts(given["self"].shape) & self.marks.layouts(result.shape):
            raise Refused(f"{func} from {list(given['self'].shape)} to {list(result.shape)} takes tokens apart")

    def over_dims(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """A reduction or ordering, which must not run over tokens."""
        value = given["self"]
        dims = given.get("dim", -1 if func.overloadpacket in _LAST_BY_DEFAULT else None)
        dims = range(value.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        axes = {dim % value.ndim for dim in dims} & set(self._token_axes(value))
        # Copies of tokens may be merged in one axis with them, and rows; all are summed up alike.
        if axes and not (self.tail and func.overloadpacket in _POOLS):
            raise Refused(f"{func} runs over tokens")

    def take(self, func: Any, given: dict[str, Any], result: Tensor) -> None:
        """One position or a range of an axis: of tokens, only all of them, with or without room, or the last ones."""
        value, dim = given["self"], given.get("dim", 0)
        if dim % value.ndim not in self._token_axes(value):
            return
        size = value.shape[dim]
        if func.overloadpacket is aten.select:
            position = given["index"]
            if position == -1:
                return
            raise AtPositions(f"{func} takes the token at position {position}")
        start, end, step = given.get("start") or 0, given.get("end"), given.get("step", 1)
        to_the_end = end is None or end == size or end > 2**62 or (end in self.marks.tokens and size > end)
        if self.tail and start < -1:
            raise AtPositions(f"{func} takes the last {-start} tokens")
        if start == -self.marks.full:
            raise Refused(f"{func} takes as many tokens as there were")
        if not to_the_end or step != 1 or start > 0:
            raise AtPositions(f"{func} takes the tokens from {start} to {end}")

    def index(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """Places in an axis that are data of the tokens themselves, such as the expert of each."""
        indices = [index for index in given["indices"] if index is not None]
        if any(index.dtype == torch.bool or index.untyped_storage()._cdata in self.read_only for index in indices):
            raise AtPositions(f"{func} takes tokens at places that were computed before the cut")
        if "values" in given and given["values"].ndim and given["values"].shape[0] != indices[0].shape[0]:
            raise Refused(f"{func} puts another number of values than it has places")

    def gather(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """Places in an axis other than that of the tokens."""
        value = given["self"]
        if given["dim"] % value.ndim in self._token_axes(value):
            raise AtPositions(f"{func} takes tokens at places")

    def order(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """An order of tokens by what they hold, in one axis for all."""
        if given["self"].ndim != 1:
            self.over_dims(func, given, result)

    def split(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """Parts of an axis other than that of the tokens."""
        value = given["self"]
        if given.get("dim", 0) % value.ndim in self._token_axes(value):
            raise AtPositions(f"{func} splits the sequence")

    def join(self, func: Any, given: dict[str, Any], result: Tensor) -> None:
        """Tensors side by side along an axis other than that of the tokens; empty ones do not count."""
        parts = [part for part in given["tensors"] if part.numel()]
        dim = given.get("dim", 0)
        if len(parts) > 1 and any(dim % part.ndim in self._token_axes(part) for part in parts):
            raise Refused(f"{func} appends tokens to others, such as those that a cache holds already")

    def norm(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """A norm over the last axes, which must not be those of tokens."""
        value = given["input"]
        if any(self.marks.token(size) for size in value.shape[value.ndim - len(given["normalized_shape"]) :]):
            raise Refused(f"{func} runs over tokens")

    def across(self, func: Any, given: dict[str, Any], result: Any) -> None:
        """What all processes hold, one behind the other in the first axis, which must not be that of tokens."""
        if 0 in self._token_axes(given["input"]):
            raise Refused(f"{func} puts the tokens of other processes behind others")

    def pad(self, func: Any, given: dict[str, Any], result: Tensor) -> None:
        """Padding of other axes, or room behind the tokens."""
        for axis, size in enumerate(given["self"].shape):
            place = 2 * (result.ndim - 1 - axis)
            in_front, behind = given["pad"][place : place + 2] or (0, 0)
            # Both are asked: a sequence that is shifted keeps its length.
            if self.marks.token(size) and (in_front or (behind and behind not in self.marks.rooms)):
                raise Refused(f"{func} pads the sequence")


# What gives one value of many, in which each counts.
_POOLS = {aten.sum, aten.mean, aten.amax, aten.amin, aten.any, aten.all}
_LAST_BY_DEFAULT = {aten.topk, aten.sort}
_SOFTMAX = {aten._softmax, aten._log_softmax, aten._safe_softmax}
# Products, with the name of the argument whose last axis is summed over.
_CONTRACTED = {
    aten.mm: "self",
    aten.bmm: "self",
    aten.matmul: "self",
    aten._grouped_mm: "self",
    aten.linear: "input",
    aten.addmm: "mat1",
    aten.baddbmm: "batch1",
}
_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable,
    aten._scaled_dot_product_attention_math,
}
# Other processes hold the same tokens at the same places, see `passes.analysis.tensor_parallel`.
_ACROSS_RANKS = (
    (torch.ops._c10d_functional.all_reduce, torch.ops._c10d_functional.wait_tensor)
    if torch.distributed.is_available()
    else ()
)
_GATHERED_FROM_RANKS = (torch.ops._c10d_functional.all_gather_into_tensor,) if torch.distributed.is_available() else ()
_RULES: dict[Any, Callable[..., None]] = {
    operator: rule
    for rule, operators in {
        TokenRules.allowed: (
            *(torch.ops.prim.device, torch.ops.prim.layout),
            *(aten.alias, aten.clone, aten._to_copy, aten.detach, aten.lift_fresh, aten.lift_fresh_copy),
            *(aten.expand, aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze),
            *(aten.copy, aten.copy_, aten.fill_, aten.stack),
            *(*_CONTRACTED, *_SOFTMAX, *_ATTENTION, aten.native_dropout, aten.dropout),
            *(
                aten.zeros_like,
                aten.ones_like,
                aten.full_like,
                aten.empty_like,
                aten.new_empty,
                aten.new_zeros,
                aten.new_ones,
                aten.new_full,
                aten.rand_like,
                aten.bernoulli_,
            ),
            *(aten.nll_loss_forward, aten.masked_fill, aten.masked_fill_, aten.where, aten.prelu),
            *(aten.floor_divide, aten.remainder),
            *(*_ACROSS_RANKS, HELD_POSITIONS),
        ),
        TokenRules.across: _GATHERED_FROM_RANKS,
        TokenRules.reshape: (aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias),
        TokenRules.over_dims: (
            *(
                aten.mean,
                aten.sum,
                aten.prod,
                aten.amax,
                aten.amin,
                aten.max,
                aten.min,
                aten.argmax,
                aten.argmin,
            ),
            *(aten.var, aten.std, aten.var_mean, aten.linalg_vector_norm, aten.logsumexp, aten.any, aten.all),
            *(aten.topk, aten.cumsum, aten.glu),
        ),
        TokenRules.order: (aten.sort, aten.histc),
        TokenRules.index: (aten.index, aten.index_put),
        TokenRules.gather: (aten.gather, aten.index_select, aten.scatter, aten.scatter_),
        TokenRules.take: (aten.select, aten.slice),
        TokenRules.split: (aten.split, aten.split_with_sizes, aten.unbind, aten.chunk),
        TokenRules.join: (aten.cat,),
        TokenRules.norm: (aten.native_layer_norm, aten._fused_rms_norm, aten.rms_norm),
        TokenRules.pad: (aten.constant_pad_nd,),
    }.items()
    for operator in operators
}

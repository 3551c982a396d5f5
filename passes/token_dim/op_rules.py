"""Which ATen operators may see a tensor that holds tokens, and how: one rule for each, by ``register_op_rule``.

The shrink pass changes how many tokens a tensor holds. That is right for operators that treat tokens one
by one (element-wise, norms and products over channels) or that mix them in the way of attention (a softmax
or a contraction over tokens). It is wrong for operators that address tokens by position: an index, a
partial slice, a write into a buffer. So operators are allowed by name, and an unknown one is declined.

Tokens are recognised by size, see ``passes.token_dim.sentinels``. ``docs/extending/aten_rule.md`` adds a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import PositionalOp, UnsupportedOp
from ..fx.nodes import ONE_NUMBER
from ..fx.tensor_subclasses import is_wrapper, plain_tensors
from ..held_positions import HELD_POSITIONS
from .sentinels import Layout, SentinelSizes, note_orders, orders_in
from .sequence_functions import SEQUENCE_FUNCTIONS

aten = torch.ops.aten

WRITES_INTO_OLDER = (
    "it writes into a tensor that was made before the cut, such as a preallocated (static) cache; use the default "
    "dynamic cache"
)


@dataclass(frozen=True)
class OpCall:
    """One call of an ATen operator on fake tensors, of which at least one holds tokens.

    Attributes:
        func: the overload that is called.
        args: its arguments by name; those not given are left out.
        result: what it returned.
        sizes: tell what an axis holds.
        in_tail: whether tokens have left the decoder: kept ones may be summed up, and the last n are not the last
            kept n.
        read_only: the storages of tensors that were made before the cut.
        orders: in which order axes hold tokens and more, by their sizes, as far as its arguments tell. A rule that
            finds more says so here: what the result is given to has to take it in the same order.
        numbers: the storages of tensors of numbers that are written in the graph, such as a list that is an index.
    """

    func: Any
    args: dict[str, Any]
    result: Any
    sizes: SentinelSizes
    in_tail: bool
    read_only: frozenset[int]
    orders: dict[int, Set[Layout]]
    numbers: frozenset[int]

    def is_token_axis(self, value: Tensor, dim: int) -> bool:
        """Return whether ``dim`` of a tensor, counted from either end, holds tokens."""
        return self.sizes.token(value.shape[dim]) is not None


Rule = Callable[[OpCall], None]

_RULES: dict[Any, Rule] = {}
_MIXES: dict[Any, Callable[[OpCall], bool]] = {}


def register_op_rule(*operators: Any, mixes_tokens: bool | Callable[[OpCall], bool]) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators, or for operators of a library.

    The decorated function is called for each call that sees tokens, and raises ``UnsupportedOp`` where the operator
    would
    not be right for fewer tokens: with the sentence that a user is told.

    Args:
        operators: packets, such as ``torch.ops.aten.cat``.
        mixes_tokens: whether what it gives for one token depends on others, of all calls or of one. A layer that is
            hoisted computes queries and more for kept tokens only; what mixes tokens has no place there.

    Raises:
        ValueError: for an operator that has a rule.
    """

    def register(rule: Rule) -> Rule:
        for packet in operators:
            if packet in _RULES:
                raise ValueError(f"{packet} has a rule already: {_RULES[packet].__name__}")
            _RULES[packet] = rule
            if mixes_tokens:
                _MIXES[packet] = mixes_tokens if callable(mixes_tokens) else _always
        return rule

    return register


def _always(call: OpCall) -> bool:
    return True


class TokenRules(TorchDispatchMode):
    """Runs operators, and raises ``UnsupportedOp`` for one that must not see tokens the way it does."""

    def __init__(
        self,
        sizes: SentinelSizes,
        read_only: Iterable[Tensor] = (),
        pointwise: bool = False,
        in_tail: bool = False,
    ) -> None:
        """Take what the tokens are for.

        Args:
            sizes: tell what an axis holds.
            read_only: tensors that no operator may write into.
            pointwise: whether each token must be treated for itself: no attention, nor what mixes tokens in its way.
            in_tail: see ``OpCall``.
        """
        super().__init__()
        self.sizes, self.pointwise, self.in_tail = sizes, pointwise, in_tail
        storages = (plain.untyped_storage()._cdata for tensor in read_only for plain in plain_tensors(tensor))
        self.read_only = frozenset(storages)
        self._numbers: list[Tensor] = []  # kept, so that no other tensor gets their storage

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Check one operator, then run it."""
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
                raise UnsupportedOp(WRITES_INTO_OLDER)
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is aten.lift_fresh:
            self._numbers.append(result)
        moves_rows = _RULES.get(packet) is reshape and self.sizes.batch
        if moves_rows or any(self.sizes.token(size) for each in tensors for size in each.shape):
            numbers = frozenset(each.untyped_storage()._cdata for each in self._numbers)
            orders = _orders_of_all(func, tensors)
            call = OpCall(func, named, result, self.sizes, self.in_tail, self.read_only, orders, numbers)
            _rule(func)(call)
            for each in tree_leaves(result):
                if isinstance(each, Tensor) and call.orders:
                    note_orders(each, call.orders)
            if self.pointwise and (packet in SEQUENCE_FUNCTIONS or (packet in _MIXES and _MIXES[packet](call))):
                raise UnsupportedOp(f"{func} mixes tokens")
        return result


def _orders_of_all(func: Any, tensors: Iterable[Tensor]) -> dict[int, Set[Layout]]:
    orders: dict[int, Set[Layout]] = {}
    for tensor in tensors:
        for size, known in orders_in(tensor).items():
            orders[size] = orders.get(size, known) & known
            if not orders[size]:
                raise UnsupportedOp(f"{func} brings together tokens that lie in two orders")
    return orders


def _rule(func: Any) -> Rule:
    packet = func.overloadpacket
    is_known = torch.Tag.pointwise in func.tags or packet in SEQUENCE_FUNCTIONS
    rule = _RULES.get(packet, allowed if is_known else None)
    if rule is None:
        raise UnsupportedOp(f"{func} is not known to be right for fewer tokens")
    return rule


# The rules.


@register_op_rule(
    *(torch.ops.prim.device, torch.ops.prim.layout),
    *(aten.alias, aten.clone, aten._to_copy, aten.detach, aten.lift_fresh, aten.lift_fresh_copy),
    *(aten.expand, aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze),
    *(aten.copy, aten.copy_, aten.fill_, aten.stack, aten.native_dropout, aten.dropout),
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.bernoulli_),
    *(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full),
    *(aten.nll_loss_forward, aten.masked_fill, aten.masked_fill_, aten.where, aten.prelu),
    *(aten.floor_divide, aten.remainder, aten.view_as_complex, aten.view_as_real, HELD_POSITIONS),
    mixes_tokens=False,
)
def allowed(call: OpCall) -> None:
    """Each token for itself, or tokens mixed as attention does."""


register_op_rule(
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable,
    aten._scaled_dot_product_attention_math,
    mixes_tokens=True,
)(allowed)


@register_op_rule(
    *(aten._softmax, aten._log_softmax, aten._safe_softmax),
    mixes_tokens=lambda call: call.is_token_axis(call.args["self"], call.args["dim"]),
)
def softmax(call: OpCall) -> None:
    """Over tokens it is that of attention."""


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


@register_op_rule(
    *_CONTRACTED,
    mixes_tokens=lambda call: call.is_token_axis(call.args[_CONTRACTED[call.func.overloadpacket]], -1),
)
def product(call: OpCall) -> None:
    """Over tokens it is that of attention."""


@register_op_rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, mixes_tokens=False)
def reshape(call: OpCall) -> None:
    """Tokens and rows must stay where they are in memory order."""
    before, after = call.args["self"].shape, call.result.shape
    fits = call.sizes.layouts(after, {})
    common = call.sizes.layouts(before, call.orders).keys() & fits.keys()
    if not common:
        raise UnsupportedOp(f"{call.func} from {list(before)} to {list(after)} takes tokens apart")
    choices = set().union(*(fits[layout] for layout in common))
    call.orders.update({size: {order for of, order in choices if of == size} for size, _ in choices})


@register_op_rule(aten.repeat, mixes_tokens=False)
def repeat(call: OpCall) -> None:
    """Copies of all tokens, one after the other, as for each of several experts; of rows there can't be more."""
    value, repeats = call.args["self"], call.args["repeats"]
    for size, times in zip(reversed(value.shape), reversed(repeats), strict=False):
        holds = call.sizes.contents(size)
        if times == 1 or not (holds.tokens or holds.batch):
            continue
        if holds.tokens is None or holds.copies > 1 or holds.slack:
            raise UnsupportedOp(f"{call.func} repeats more than tokens")
        rows = ((call.sizes.batch, holds.tokens),) if holds.batch and call.sizes.batch else ()
        call.orders[size * times] = {((holds.tokens, 1), *rows)}


_LAST_BY_DEFAULT = {aten.topk, aten.sort}
# What gives one value of many, in which each counts.
_POOLS = {aten.sum, aten.mean, aten.amax, aten.amin, aten.any, aten.all}


@register_op_rule(
    *(aten.mean, aten.sum, aten.prod, aten.amax, aten.amin, aten.max, aten.min, aten.argmax, aten.argmin),
    *(aten.var, aten.std, aten.var_mean, aten.linalg_vector_norm, aten.logsumexp, aten.any, aten.all),
    *(aten.topk, aten.cumsum, aten.glu),
    mixes_tokens=False,
)
def reduction(call: OpCall) -> None:
    """A reduction or ordering, which must not run over tokens."""
    value = call.args["self"]
    dims = call.args.get("dim", -1 if call.func.overloadpacket in _LAST_BY_DEFAULT else None)
    dims = range(value.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    runs_over_tokens = any(call.is_token_axis(value, dim) for dim in dims)
    # Copies of tokens may be merged in one axis with them, and rows; all are summed up alike.
    if runs_over_tokens and not (call.in_tail and call.func.overloadpacket in _POOLS):
        raise UnsupportedOp(f"{call.func} runs over tokens")


@register_op_rule(aten.sort, aten.histc, mixes_tokens=False)
def sort(call: OpCall) -> None:
    """An order of tokens by what they hold, in one axis for all."""
    if call.args["self"].ndim != 1:
        reduction(call)


def _takes_last(call: OpCall) -> bool:
    return (call.args.get("start") or 0) < 0 and call.is_token_axis(call.args["self"], call.args.get("dim", 0))


@register_op_rule(aten.slice, mixes_tokens=_takes_last)
def slice_(call: OpCall) -> None:
    """A range of an axis: of tokens, only all of them, with or without slack, or the last ones."""
    value, dim = call.args["self"], call.args.get("dim", 0)
    if not call.is_token_axis(value, dim):
        return
    size = value.shape[dim]
    start, end, step = call.args.get("start") or 0, call.args.get("end"), call.args.get("step", 1)
    to_the_end = end is None or end == size or end > 2**62 or (end in call.sizes.tokens and size > end)
    if call.in_tail and start < -1:
        raise PositionalOp(f"{call.func} takes the last {-start} tokens")
    if start == -call.sizes.full_length:
        raise UnsupportedOp(f"{call.func} takes as many tokens as there were")
    if not to_the_end or step != 1 or start > 0:
        raise PositionalOp(f"{call.func} takes the tokens from {start} to {end}")


@register_op_rule(aten.select, mixes_tokens=False)
def select(call: OpCall) -> None:
    """One position of an axis: of tokens, only the last."""
    position = call.args["index"]
    if call.is_token_axis(call.args["self"], call.args.get("dim", 0)) and position != -1:
        raise PositionalOp(f"{call.func} takes the token at position {position}")


@register_op_rule(aten.index, aten.index_put, mixes_tokens=False)
def index(call: OpCall) -> None:
    """Places in an axis that are data of the tokens themselves, such as the expert of each."""
    indices = [each for each in call.args["indices"] if each is not None]
    if any(each.dtype == torch.bool or each.untyped_storage()._cdata in call.read_only for each in indices):
        raise PositionalOp(f"{call.func} takes tokens at places that were computed before the cut")
    if any(each.untyped_storage()._cdata in call.numbers for each in _of_tokens(call)):
        raise PositionalOp(f"{call.func} takes tokens at the positions of a list")
    values = call.args.get("values")
    if values is not None and values.ndim and values.shape[0] != indices[0].shape[0]:
        raise UnsupportedOp(f"{call.func} puts another number of values than it has places")


@register_op_rule(aten.index_fill, aten.index_fill_, mixes_tokens=False)
def index_fill(call: OpCall) -> None:
    """One number, at places in an axis other than that of the tokens."""
    if call.is_token_axis(call.args["self"], call.args["dim"]):
        raise PositionalOp(f"{call.func} writes at places among the tokens")


@register_op_rule(aten.index_put_, mixes_tokens=False)
def write_at(call: OpCall) -> None:
    """One number, at places in an axis other than that of the tokens."""
    if any(each is not None and each.dtype == torch.bool for each in call.args["indices"]) or _of_tokens(call):
        raise PositionalOp(f"{call.func} writes at places among the tokens")
    if call.args["values"].ndim:
        raise UnsupportedOp(f"{call.func} writes more than one number")


def _of_tokens(call: OpCall) -> list[Tensor]:
    """The indices into an axis of tokens."""
    value = call.args["self"]
    return [
        each for axis, each in enumerate(call.args["indices"]) if each is not None and call.is_token_axis(value, axis)
    ]


@register_op_rule(aten.index_select, mixes_tokens=False)
def index_select(call: OpCall) -> None:
    """Places in an axis other than that of the tokens."""
    if call.is_token_axis(call.args["self"], call.args["dim"]):
        raise PositionalOp(f"{call.func} takes tokens at places")


@register_op_rule(aten.slice_scatter, mixes_tokens=False)
def slice_scatter(call: OpCall) -> None:
    """Writes into a range of an axis other than that of the tokens."""
    if call.is_token_axis(call.args["self"], call.args.get("dim", 0)):
        raise PositionalOp(f"{call.func} writes to tokens at places")


@register_op_rule(aten.gather, aten.scatter, aten.scatter_, mixes_tokens=False)
def gather(call: OpCall) -> None:
    """Places in an axis other than that of the tokens, for each token: of a shorter index torch takes the first."""
    index_select(call)
    value, index = call.args["self"], call.args["index"]
    if any(index.shape[axis] != value.shape[axis] for axis in call.sizes.token_axes(value.shape)):
        raise UnsupportedOp(f"{call.func} has no place for each token")


@register_op_rule(aten.split, aten.split_with_sizes, aten.unbind, aten.chunk, mixes_tokens=False)
def split(call: OpCall) -> None:
    """Parts of an axis other than that of the tokens."""
    if call.is_token_axis(call.args["self"], call.args.get("dim", 0)):
        raise PositionalOp(f"{call.func} splits the sequence")


@register_op_rule(aten.cat, mixes_tokens=False)
def cat(call: OpCall) -> None:
    """Tensors side by side along an axis other than that of the tokens; empty ones do not count."""
    parts = [part for part in call.args["tensors"] if part.numel()]
    if len(parts) > 1 and any(call.is_token_axis(part, call.args.get("dim", 0)) for part in parts):
        raise UnsupportedOp(f"{call.func} appends tokens to others, such as those that a cache holds already")


@register_op_rule(aten.native_layer_norm, aten._fused_rms_norm, aten.rms_norm, mixes_tokens=False)
def norm(call: OpCall) -> None:
    """A norm over the last axes, which must not be those of tokens."""
    value = call.args["input"]
    if any(call.sizes.token(size) for size in value.shape[value.ndim - len(call.args["normalized_shape"]) :]):
        raise UnsupportedOp(f"{call.func} runs over tokens")


@register_op_rule(aten.constant_pad_nd, mixes_tokens=False)
def pad(call: OpCall) -> None:
    """Padding of other axes, or slack after the tokens."""
    for axis, size in enumerate(call.args["self"].shape):
        place = 2 * (call.result.ndim - 1 - axis)
        before, after = call.args["pad"][place : place + 2] or (0, 0)
        # Both are asked: a sequence that is shifted keeps its length.
        if call.sizes.token(size) and (before or (after and after not in call.sizes.slacks)):
            raise UnsupportedOp(f"{call.func} pads the sequence")


if torch.distributed.is_available():
    # Other processes hold the same tokens at the same places, see `passes.analysis.tensor_parallel`.
    register_op_rule(torch.ops._c10d_functional.all_reduce, torch.ops._c10d_functional.wait_tensor, mixes_tokens=False)(
        allowed
    )

    @register_op_rule(torch.ops._c10d_functional.all_gather_into_tensor, mixes_tokens=False)
    def all_gather(call: OpCall) -> None:
        """What all processes hold, one after the other in the first axis, which must not be that of tokens."""
        if call.is_token_axis(call.args["input"], 0):
            raise UnsupportedOp(f"{call.func} puts the tokens of other processes after others")

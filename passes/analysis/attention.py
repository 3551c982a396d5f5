"""Finds the attention nodes of a Dynamo graph, whatever form they were written in.

Each form is an ``AttentionOp``. All become an ``Attention``, so that no later pass has to know which of them a model
uses.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

from ...kernels import causal_attention, masked_attention  # noqa: F401 (they register operators)
from ..errors import UnsupportedOp
from ..fx.nodes import ancestors, arguments, example_tensor
from .sinks import SOFTMAX, find_sinks, is_over_last

if TYPE_CHECKING:
    from ..token_dim.sentinels import SentinelSizes

_SDPA_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_MATMUL = {torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm"}
_ADD = {torch.add, operator.add, operator.iadd, "add", "add_"}
_MUL = {torch.mul, operator.mul, operator.imul, "mul", "mul_"}
_DIV = {torch.div, torch.true_divide, operator.truediv, "div"}
_TRANSPOSE = {torch.transpose, "transpose"}
# Nodes that hand one tensor through: casts, copies and dropout.
_THROUGH = {torch.dropout, F.dropout, "to", "float", "type_as", "contiguous", "half", "bfloat16"}


@dataclass(frozen=True)
class Attention:
    """One attention of a graph.

    ``query`` is ``[B, H, Sq, D]`` and ``key`` ``[B, H or fewer, Sk, D]``, both as they enter the product
    (after rotary embedding, key and value heads repeated or not). ``mask`` is boolean (True: may be seen)
    or additive, broadcastable to ``[B, H, Sq, Sk]``. ``scale`` multiplies the product; None stands for
    ``D ** -0.5``. ``output`` is the node that holds ``probabilities @ value``. ``causal`` says that it is causal
    by its own arguments; with a mask it may be. ``masked`` is the node that reads the mask. ``sinks`` are one more
    logit of each query, ``[1 or B, 1 or H, 1, 1]``, which takes a share of the attention and gives nothing; None
    without. ``token_axis`` is that of the queries' and keys' positions, another one only until an operator that has
    heads behind tokens is lowered.
    """

    query: Node
    key: Node
    mask: Node | None
    scale: float | Node | None
    output: Node
    causal: bool
    masked: Node | None
    sinks: Node | None = None
    token_axis: int = -2


class AttentionOp:
    """One form in which models write attention. ``register_attention`` adds one; docs/extending/attention_op.md.

    Attributes:
        targets: the functions of a graph that are the whole attention, each one node; none for a form of several nodes,
            which the prover follows operator by operator.
    """

    targets: Collection[Any] = ()

    def match(self, node: Node) -> Attention | None:
        """Return the attention that ``node`` is of this form, with its mask; None for any other node.

        Of a form of several nodes it is one of them, whichever is the best to begin with.
        """
        raise NotImplementedError

    def check(self, sizes: SentinelSizes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check that one node is right for the fake tensors that it is given, which hold fewer tokens.

        Whatever running the node on them does not show is to be asked here; ``check_sdpa`` is that for most.

        Raises:
            UnsupportedOp: where it is not.
        """
        raise UnsupportedOp(f"{type(self).__name__} does not say what is right for fewer tokens")

    def as_sdpa(self, node: Node) -> dict[str, Any] | None:
        """Return the arguments of the ``scaled_dot_product_attention`` that gives the same, without those not given.

        A layer whose attention has no such can't be hoisted.
        """
        return None


_FORMS: list[AttentionOp] = []


def register_attention(form: AttentionOp) -> AttentionOp:
    """Add a form in which models write attention. The forms are asked in the order in which they were added."""
    _FORMS.append(form)
    return form


def find_attention(graph: Graph) -> list[Attention]:
    """Return all attentions of ``graph``, in the order of their nodes."""
    found = (_match(node) for node in graph.nodes)
    return [attention for attention in found if attention is not None]


def attend_to(graph: Graph, nodes: Collection[Node]) -> list[Node]:
    """Return the results of those attentions of a graph whose keys are computed from any of some nodes."""
    found = []
    for attention in find_attention(graph):
        if isinstance(attention.key, Node) and not set(nodes).isdisjoint(ancestors(attention.key)):
            found.append(attention.output)
    return found


def find_attention_op(node: Node) -> AttentionOp | None:
    """Return the form of which a node is the whole attention; None where it is of none."""
    return next((form for form in _FORMS if node.op == "call_function" and node.target in form.targets), None)


def where_unknown(node: Node) -> Node | None:
    """Return what makes a softmax none of a known form of attention: where its scores cease to be known, or itself.

    None where ``node`` is no softmax, or that of an attention.
    """
    if node.target not in SOFTMAX or any(_match(each) is not None for each in (node, *node.users)):
        return None
    if not node.args:
        return node
    end = _scores(node.args[0])[0]
    return node if end is None or _is_product(end) else end


def as_sdpa(node: Node) -> dict[str, Any] | None:
    """Return the arguments of the fused attention that gives what a node does; None where there is none."""
    form = find_attention_op(node)
    return None if form is None else form.as_sdpa(node)


def as_rewritten(graph: Graph, attention: Attention) -> Attention:
    """Return an attention with the arguments that its nodes have now."""
    return next(found for found in find_attention(graph) if found.output is attention.output)


def check_sdpa(
    sizes: SentinelSizes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    **_: Any,
) -> None:
    """Check sizes that fused attention does not check on fake tensors.

    Raises:
        UnsupportedOp: where they don't fit.
    """
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise UnsupportedOp("query, key and value have other lengths or channels")
    if query.shape[:-3] != key.shape[:-3] or key.shape[:-3] != value.shape[:-3]:
        raise UnsupportedOp("query, key and value have other numbers of rows")
    if is_causal and key.shape[-2] - query.shape[-2] not in (0, *sizes.slacks):
        raise UnsupportedOp("causal attention has more keys than queries: a cache that holds tokens already")
    if attn_mask is not None:
        attn_mask.expand(*query.shape[:-1], key.shape[-2])


def _match(node: Node) -> Attention | None:
    return next((found for form in _FORMS if (found := form.match(node)) is not None), None)


class _Fused(AttentionOp):
    """``torch.nn.functional.scaled_dot_product_attention``."""

    targets = (F.scaled_dot_product_attention,)

    def match(self, node: Node) -> Attention | None:
        given = self.as_sdpa(node) if node.op == "call_function" and node.target in self.targets else None
        if given is None:
            return None
        mask, causal = given.get("attn_mask"), bool(given.get("is_causal"))
        return Attention(given["query"], given["key"], mask, given.get("scale"), node, causal, node)

    def check(self, sizes: SentinelSizes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_sdpa(sizes, **_by_name(args, kwargs))

    def as_sdpa(self, node: Node) -> dict[str, Any] | None:
        return _by_name(node.args, node.kwargs)


def _by_name(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(_SDPA_PARAMETERS, args, strict=False)), **kwargs}


def sees_in_order(node: Node) -> bool:
    """Return whether the block mask of a flex_attention depends on the positions of its queries and keys."""
    owner, mask_fn = node.graph.owning_module, arguments(node)[4][-1]
    module = getattr(owner, mask_fn.target)
    _, _, query, key = module.graph.find_nodes(op="placeholder")[:4]
    return bool(query.users and key.users)


class _Flex(AttentionOp):
    """``flex_attention``, which ``canonicalize.flex_to_sdpa`` lowers where its mask depends on positions.

    That shows its mask; until then it counts as causal. What is left sees each pair, and scores it by what it holds:
    the prover runs it as operators.
    """

    def match(self, node: Node) -> Attention | None:
        if node.target is not torch.ops.higher_order.flex_attention:
            return None
        query, key, _, _, _, scale, *_ = arguments(node)
        return Attention(query, key, None, scale, node, sees_in_order(node), node)


class _Eager(AttentionOp):
    """The chain ``matmul -> scale -> add mask -> softmax -> matmul``, found by its softmax, which may have sinks."""

    def match(self, node: Node) -> Attention | None:
        with_sinks = find_sinks(node)
        if with_sinks is None and (node.target not in SOFTMAX or not is_over_last(node)):
            return None
        scores, sinks = (node.args[0], None) if with_sinks is None else (with_sinks.scores, with_sinks.sinks)
        value = example_tensor(scores)
        product, mask, scale, masked = _scores(scores)
        output = _value_product(node)
        if value is None or value.ndim < 3 or output is None or product is None or not _is_product(product):
            return None
        rank = value.ndim
        query, transposed = arguments(product)
        if not isinstance(transposed, Node) or transposed.target not in _TRANSPOSE:
            return None
        key, *swapped = arguments(transposed)
        if {d % rank for d in swapped if isinstance(d, int)} != {rank - 2, rank - 1}:
            return None
        return Attention(query, key, mask, scale, output, causal=False, masked=masked, sinks=sinks)


class _WithoutMask(AttentionOp):
    """The operators of ours that stand in a pruned graph, where masks were (``rewrite.attention_masks``)."""

    targets = (
        torch.ops.sharp_compile.causal_attention.default,
        torch.ops.sharp_compile.masked_attention.default,
    )

    def match(self, node: Node) -> Attention | None:
        if node.op != "call_function" or node.target not in self.targets:
            return None
        query, key, *_, scale = arguments(node)
        return Attention(query, key, None, scale, node, causal=True, masked=node)


for _form in (_Fused(), _Flex(), _Eager(), _WithoutMask()):
    register_attention(_form)


def _scores(node: Any) -> tuple[Node | None, Node | None, float | Node, Node | None]:
    """Walk from a softmax back to ``query @ key^T``: the product (else where it ends), mask, scale, mask's reader."""
    mask: Node | None = None
    masked: Node | None = None
    scale: float | Node | None = None
    while isinstance(node, Node) and not _is_product(node):
        if node.target in _THROUGH:
            node = node.args[0]
        elif node.target in _ADD and example_tensor(node.args[1]) is not None and mask is None and scale is None:
            masked = node
            node, mask = arguments(node)
        elif node.target in _MUL | _DIV and scale is None and isinstance(node.args[1], int | float):
            factor = arguments(node)[1]
            scale = factor if node.target in _MUL else 1.0 / factor
            node = node.args[0]
        elif (
            node.target in _MUL
            and scale is None
            and isinstance(node.args[1], Node)
            and example_tensor(node.args[1]) is None
        ):
            node, scale = arguments(node)
        else:
            break
    return node if isinstance(node, Node) else None, mask, 1.0 if scale is None else scale, masked


def _is_product(node: Node | None) -> bool:
    return node is not None and node.target in _MATMUL


def _value_product(node: Node) -> Node | None:
    """Return the node ``probabilities @ value`` that a softmax feeds, or None where there is not exactly one."""
    while True:
        products = [user for user in node.users if user.target in _MATMUL and user.args[0] is node]
        if products:
            return products[0] if len(products) == 1 else None
        through = [user for user in node.users if user.target in _THROUGH]
        if len(through) != 1:
            return None
        node = through[0]


def deferred_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, enable_gqa: bool
) -> Tensor:
    """Stand in a graph for attention of a part of the tokens to all, until the positions of the part are known.

    Args:
        query: ``[B, H, S', D]``.
        key: ``[B, Hkv, S, D]``.
        value: ``[B, Hkv, S, D]``.
        mask: the rows of the part, broadcastable to ``[B, H, S', S]``; None for causal attention.
        scale: as that of the fused attention.
        enable_gqa: as that of the fused attention.

    Returns:
        An empty tensor ``[B, H, S', D]``.
    """
    return query.new_empty((*query.shape[:-1], value.shape[-1]))

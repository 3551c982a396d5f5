"""FlashAttention's own operators, where one stands whole in a graph.

They are known by name and read by their schemas: no package need be there, and versions differ in what else they take.
Queries, keys and values are ``[B, S, H, D]``, or ``[T, H, D]`` of samples that are packed one after the other, with the
places where each of them begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

from .attention import Attention, AttentionOp, register_attention

_OPERATORS = {
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
    "flash_attn_3::_flash_attn_forward",
    "flash_attn_3::fwd",
    "torch_attn::_varlen_attn",
}
# One name for what versions call differently.
_NAMES = {
    "q": "query",
    "k": "key",
    "v": "value",
    "cu_seqlens_q": "cu_seq_q",
    "cu_seqlens_k": "cu_seq_k",
    "causal": "is_causal",
    "softmax_scale": "scale",
}
# What is read below, and what says how to compute and not what.
_KNOWN = {"query", "key", "value", "cu_seq_q", "cu_seq_k", "scale", "enable_gqa"} | {
    *("max_seqlen_q", "max_seqlen_k", "max_q", "max_k", "return_softmax", "zero_tensors", "num_splits", "pack_gqa"),
    *("scheduler_metadata", "sm_margin", "deterministic"),
}


@dataclass(frozen=True)
class FlashCall:
    """A call of one of the operators.

    ``begins`` are the places where the packed samples of the queries and of the keys begin, and where the last of them
    ends; None without packing. ``others`` are the names of arguments in use that fused attention does not have.
    """

    name: str
    query: Node
    key: Node
    value: Node
    is_causal: bool
    scale: float | Node | None
    begins: tuple[Node, Node] | None
    others: tuple[str, ...]


def read_flash(node: Node) -> FlashCall | None:
    """Return what a node calls, None where it is none of the operators."""
    schema = _schema(node.target) if node.op == "call_function" else None
    if schema is None or schema.name not in _OPERATORS:
        return None
    names = [argument.name for argument in schema.arguments]
    given: dict[str, Any] = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    given = {_NAMES.get(name, name): value for name, value in given.items()}
    sides = given.pop("window_size_left", -1), given.pop("window_size_right", -1)
    left, right = given.pop("window_size", None) or sides
    causal = given.pop("is_causal", False)
    # What is known only when the graph runs may be anything.
    is_open = any(isinstance(each, Node) for each in (causal, left, right))
    is_causal = bool(causal) or right == 0 or is_open
    begins_q, begins_k = given.get("cu_seq_q"), given.get("cu_seq_k")
    others = [name for name, value in given.items() if name not in _KNOWN and (isinstance(value, Node) or value)]
    if is_open or left != -1 or (not is_causal and right != -1):
        others.append("window_size")
    if (begins_q is None) != (begins_k is None):
        others.append("cu_seq_k" if begins_q is None else "cu_seq_q")
    begins = None if begins_q is None or begins_k is None else (begins_q, begins_k)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    return FlashCall(schema.name, query, key, value, is_causal, given.get("scale"), begins, tuple(others))


def argument_names(target: Any) -> list[str]:
    """Return what an operator calls its arguments."""
    schema = _schema(target)
    assert schema is not None
    return [argument.name for argument in schema.arguments]


def _schema(target: Any) -> torch.FunctionSchema | None:
    if isinstance(target, OpOverloadPacket) and "default" in target.overloads():
        target = target.default
    return target._schema if isinstance(target, OpOverload) else None


class _Flash(AttentionOp):
    """An operator of FlashAttention, until ``canonicalize.flash_to_sdpa`` lowers it."""

    def match(self, node: Node) -> Attention | None:
        call = read_flash(node)
        if call is None:
            return None
        return Attention(call.query, call.key, None, call.scale, node, call.is_causal, node, token_axis=-3)


register_attention(_Flash())

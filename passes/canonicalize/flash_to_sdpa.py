"""Reads FlashAttention's operators as the fused attention that they stand for, and writes them back at the end.

The rest of the passes know queries and keys as ``[B, H, S, D]``, and a mask as a tensor. The operators take ``[B, S, H,
D]``, or packed samples with the places where each begins. So each becomes a ``scaled_dot_product_attention`` between
transposes while the graph is analysed and rewritten, causal or with the dense mask of the samples. In the end it
becomes what it was, where its mask is still the same: everywhere but at a hoisted cut, under a segment mask and, of
packed samples, after a cut.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from ..analysis.dataflow import build_dataflow
from ..analysis.flash_attention import FlashCall, argument_names, read_flash
from ..errors import CannotPrune
from ..fx.emit import Emitter
from ..fx.nodes import example_tensor, example_value, fake_mode
from ..fx.sizes import expression


@dataclass(frozen=True)
class Flash:
    """An operator of FlashAttention, as it was called; the node of its result, and the mask that was made for it."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Node
    mask: Node | None
    is_packed: bool


def lower_flash_to_sdpa(emit: Emitter, embeddings: Node) -> dict[Node, Flash]:
    """Rewrite the causal operators of a graph; those of ``check_flash_lowered`` stay, and those of encoders.

    Args:
        emit: for the graph.
        embeddings: ``[B, S, C]``, the node that shows how long the sequence is.

    Returns:
        The fused attention ``[B, H, S, D]`` that stands for each.
    """
    found: dict[Node, Flash] = {}
    masks: dict[tuple[Node, Node], Node] = {}
    for node in list(emit.graph.nodes):
        call = read_flash(node)
        if call is None or not call.is_causal or _why_not(node, call, embeddings) is not None:
            continue
        is_packed = call.begins is not None
        with emit.before(node):
            if call.begins is not None and call.begins not in masks:
                masks[call.begins] = _mask_of_samples(emit, embeddings, *call.begins)
            mask = masks[call.begins] if call.begins is not None else None
            fused = _fused(emit, node, call, mask)
            output = _called(emit, fused, "transpose", 1, 2)
            if is_packed:
                output = _called(emit, output, "squeeze", 0)
        found[fused] = Flash(node.target, node.args, dict(node.kwargs), output, mask, is_packed)
        for user in list(node.users):
            user.replace_all_uses_with(output)
            emit.graph.erase_node(user)
        emit.graph.erase_node(node)
        for each in {call.query, call.key, call.value}:
            # A transpose that was undone, which would be taken for another reader of the queries.
            if each.target == "transpose" and not each.users:
                emit.graph.erase_node(each)
    return found


def restore_flash(emit: Emitter, found: dict[Node, Flash]) -> None:
    """Turn the fused attentions of ``lower_flash_to_sdpa`` whose mask is still the same into what they were."""
    for fused, flash in found.items():
        if fused.target is not F.scaled_dot_product_attention or fused.kwargs.get("attn_mask") is not flash.mask:
            continue
        args, kwargs = list(flash.args), dict(flash.kwargs)
        with emit.before(fused):
            for place, (name, operand) in enumerate(zip(argument_names(flash.target), fused.args, strict=False)):
                assert isinstance(operand, Node)
                given = _swapped(emit, operand)
                if flash.is_packed:
                    given = _called(emit, given, "squeeze", 0)
                if place < len(args):
                    args[place] = given
                else:
                    kwargs[name] = given
            call = emit.graph.call_function(flash.target, tuple(args), kwargs)
            output = emit.graph.call_function(operator.getitem, (call, 0))
        output.meta = dict(flash.output.meta)
        flash.output.replace_all_uses_with(output)
        unused = flash.output
        while unused is not fused:
            (before,) = unused.all_input_nodes
            emit.graph.erase_node(unused)
            unused = before
        emit.graph.erase_node(fused)


def check_flash_lowered(module: GraphModule, embeddings: Node) -> None:
    """Decline an operator in the decoder that could not be lowered.

    Raises:
        CannotPrune: naming what it takes that has no fused attention.
    """
    flash = [(node, call) for node in module.graph.nodes if (call := read_flash(node)) is not None]
    dataflow = build_dataflow(module.graph, embeddings) if flash else ()
    for node, call in flash:
        if call.is_causal and call.query in dataflow:
            raise CannotPrune(
                f"the decoder attends by {node.target}, which {_why_not(node, call, embeddings)}; load the model with "
                'attn_implementation="sdpa"'
            )


def _why_not(node: Node, call: FlashCall, embeddings: Node) -> str | None:
    query, key = example_tensor(call.query), example_tensor(call.key)
    if query is None or key is None:
        return "has no example values of queries and keys"
    if call.others:
        return f"is given {', '.join(call.others)}: that is not known to be right for fewer tokens"
    if any(user.target is not operator.getitem or (user.args[1] != 0 and user.users) for user in node.users):
        return "gives more than its output that is read, such as the log-sum-exp of its scores"
    length = expression(example_value(embeddings).shape[1])
    if query.ndim != (4 if call.begins is None else 3) or expression(query.shape[-3]) != length:
        return "takes several rows as one"
    if expression(key.shape[-3]) != length:
        return f"takes {key.shape[-3]} keys from {query.shape[-3]} positions: a cache that holds tokens already"
    return None


def _fused(emit: Emitter, node: Node, call: FlashCall, mask: Node | None) -> Node:
    """Return the fused attention ``[B, H, S, D]`` that gives what ``node`` does."""
    operands = []
    for each in (call.query, call.key, call.value):
        operands.append(_swapped(emit, _called(emit, each, "unsqueeze", 0) if call.begins is not None else each))
    query, key, value = map(example_value, operands)
    masked = {"is_causal": True} if mask is None else {"attn_mask": mask}
    options = masked | {"scale": call.scale, "enable_gqa": query.shape[1] != key.shape[1]}
    fused = emit.graph.call_function(F.scaled_dot_product_attention, tuple(operands), options)
    fused.meta = dict(node.meta)
    with fake_mode([query]):
        fused.meta["example_value"] = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return fused


def _swapped(emit: Emitter, node: Node) -> Node:
    """Return a tensor of four axes with the axes of heads and tokens swapped: of one that is swapped, what it was."""
    if node.op == "call_method" and node.target == "transpose" and node.args[1:] in ((1, 2), (2, 1)):
        return node.all_input_nodes[0]
    return _called(emit, node, "transpose", 1, 2)


def _called(emit: Emitter, node: Node, method: str, *args: int) -> Node:
    """Add a call of a method of a tensor that gives a view of it."""
    call = emit.graph.call_method(method, (node, *args))
    call.meta = {key: value for key, value in node.meta.items() if key in ("stack_trace", "nn_module_stack")}
    value = example_tensor(node)
    if value is not None:
        with fake_mode([value]):
            call.meta["example_value"] = getattr(value, method)(*args)
    return call


def _mask_of_samples(emit: Emitter, embeddings: Node, begins_q: Node, begins_k: Node) -> Node:
    """Add the causal mask ``[1, 1, S, S]`` of packed samples. No data of the decoder goes into it."""
    length = emit.size(embeddings, 1)
    mask: Node = emit(_sees, length, begins_q, begins_k)
    with fake_mode([example_value(embeddings)]):
        shape = (1, 1, example_value(length), example_value(length))
        mask.meta["example_value"] = torch.empty(shape, dtype=torch.bool, device=example_value(embeddings).device)
    return mask


def _sees(length: int, begins_q: Tensor, begins_k: Tensor) -> Tensor:
    """Which keys a query sees: those of its sample, up to its own place counted from the end.

    Args:
        length: S.
        begins_q: ``[N + 1]``, where samples begin among the queries, and where the last one ends.
        begins_k: likewise among the keys.
    """
    places = torch.arange(length, device=begins_q.device, dtype=begins_q.dtype)
    sample_q, sample_k = (torch.searchsorted(each, places, right=True) for each in (begins_q, begins_k))
    last = begins_q.shape[0] - 1
    to_end_q = begins_q[sample_q.clamp(max=last)] - places
    to_end_k = begins_k[sample_k.clamp(max=last)] - places
    visible = (sample_q[:, None] == sample_k) & (to_end_q[:, None] <= to_end_k)
    return visible[None, None]

"""Reads flex_attention as the fused attention that it stands for, and writes it back when its mask has changed.

A block mask is a function of positions, and lists of the blocks of 128 x 128 pairs in which it is True. Neither
can be shortened as it is; the dense mask of the pairs can. So each flex_attention becomes a
``scaled_dot_product_attention`` with a dense mask while the graph is analysed and rewritten. In the end it becomes what
it was: with its own block mask where the mask is still the same, with a new one where it is not (after a cut, at
the kept positions; under a segment mask). A dense mask that nothing
reads in the end is dead code for the compiler.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from ..analysis.attention import sees_in_order
from ..errors import CannotPrune
from ..fx.emit import Emitter
from ..fx.nodes import arguments, example_value, fake_mode

flex_attention = torch.ops.higher_order.flex_attention

_BLOCKS = slice(2, 10)  # the lists of blocks, in the tuple that a block mask is handed over as


@dataclass(frozen=True)
class Flex:
    """A flex_attention: its arguments, and the dense mask that stands for its block mask."""

    arguments: tuple[Any, ...]
    mask: Node


def lower_flex_to_sdpa(emit: Emitter, embeddings: Node) -> dict[Node, Flex]:
    """Rewrite the flex_attentions of a graph that have a mask; those of ``check_lowered`` stay.

    Args:
        emit: for the graph.
        embeddings: ``[B, S, C]``, the node that shows how many rows there are.

    Returns:
        The fused attention ``[B, H, Sq, D]`` that stands for each.
    """
    found: dict[Node, Flex] = {}
    masks: dict[Any, Node] = {}
    for node in emit.graph.find_nodes(op="call_function", target=flex_attention):
        if not sees_in_order(node) or _why_not(emit.module, node) is not None:
            continue
        query, key, value, _, (*blocks, mask_fn), scale, _, _, buffers = given = arguments(node)
        mask_module = _submodule(emit.module, mask_fn)
        with emit.before(node):
            same = (mask_module.code, tuple(buffers), blocks[0], blocks[1])
            if same not in masks:
                masks[same] = _dense(emit, mask_module, embeddings, blocks, buffers)
            fused = emit.graph.call_function(
                F.scaled_dot_product_attention,
                (query, key, value),
                {"attn_mask": masks[same], "scale": scale, "enable_gqa": True},
            )
        fused.meta = dict(node.meta)
        fused.meta["example_value"] = example_value(node)[0]
        for user in list(node.users):
            user.replace_all_uses_with(fused)
            emit.graph.erase_node(user)
        emit.graph.erase_node(node)
        found[fused] = Flex(given, masks[same])
    return found


def restore_flex(emit: Emitter, found: dict[Node, Flex]) -> None:
    """Turn the fused attentions of ``lower_flex_to_sdpa`` into flex_attention again."""
    made: dict[Node, tuple[Any, ...]] = {}
    for fused, flex in found.items():
        _, _, _, score_mod, block_mask, scale, options, score_buffers, buffers = flex.arguments
        mask = fused.kwargs["attn_mask"]
        assert isinstance(mask, Node)
        with emit.before(fused):
            if mask is not flex.mask:
                if mask not in made:
                    made[mask] = _block_mask(emit, mask)
                block_mask, buffers = made[mask], (mask,)
            call = emit.graph.call_function(
                flex_attention,
                (*fused.args, score_mod, block_mask, scale, options, score_buffers, buffers),
            )
            output = emit.graph.call_function(operator.getitem, (call, 0))
        output.meta = dict(fused.meta)
        fused.replace_all_uses_with(output)
        emit.graph.erase_node(fused)


def make_traceable(module: GraphModule) -> None:
    """Let Dynamo trace a graph again: there a flex_attention reads captured tensors from closures only."""
    for node in module.graph.find_nodes(op="call_function", target=flex_attention):
        node.target = _with_closures
    module.recompile()


def check_lowered(module: GraphModule) -> None:
    """Decline a flex_attention that could not be lowered.

    Raises:
        CannotPrune: where a mask differs between heads, where scores are changed by position, or where more than
            the output is read.
    """
    for node in module.graph.find_nodes(op="call_function", target=flex_attention):
        if sees_in_order(node) and (reason := _why_not(module, node)) is not None:
            raise CannotPrune(reason)


def _why_not(module: GraphModule, node: Node) -> str | None:
    score_mod, mask_fn = (_submodule(module, each) for each in (arguments(node)[3], arguments(node)[4][-1]))
    _, _, _, query_position, key_position = score_mod.graph.find_nodes(op="placeholder")[:5]
    if query_position.users or key_position.users:
        return (
            "flex_attention changes scores by position, which is not known to be right for fewer tokens; load the "
            'model with attn_implementation="sdpa"'
        )
    if mask_fn.graph.find_nodes(op="placeholder")[1].users:
        return 'the block mask differs between heads; load the model with attn_implementation="sdpa"'
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return (
            "more is read of flex_attention than its output, such as the log-sum-exp of its scores; load the model "
            'with attn_implementation="sdpa"'
        )
    return None


def _submodule(module: GraphModule, node: Node) -> GraphModule:
    found = module.get_submodule(str(node.target))
    assert isinstance(found, GraphModule)
    return found


def _dense(emit: Emitter, mask_fn: GraphModule, embeddings: Node, blocks: list[Any], buffers: tuple[Node, ...]) -> Node:
    """Return the dense mask ``[B, 1, Sq, Sk]`` of a block mask. No data of the decoder goes into it."""
    rows, (queries, keys) = emit.size(embeddings, 0), blocks[:2]
    mask: Node = emit(_dense_of(mask_fn), embeddings, rows, queries, keys, *buffers)
    shape = [example_value(size) for size in (rows, 1, queries, keys)]
    with fake_mode([example_value(embeddings)]):
        mask.meta["example_value"] = torch.empty(shape, dtype=torch.bool, device=example_value(embeddings).device)
    return mask


def _dense_of(mask_fn: GraphModule) -> Callable[..., Tensor]:
    def dense(like: Tensor, rows: int, queries: int, keys: int, *buffers: Tensor) -> Tensor:
        return create_mask(lambda b, h, q, k: mask_fn(b, h, q, k, *buffers), rows, 1, queries, keys, str(like.device))

    return dense


def _block_mask(emit: Emitter, mask: Node) -> tuple[Any, ...]:
    """Return a dense mask as the tuple that a block mask is handed over as."""
    lists = emit(_lists_of_blocks, mask, results=_BLOCKS.stop - _BLOCKS.start)
    reads = Graph()
    b, _, q, k, dense = (reads.placeholder(name) for name in ("b", "h", "q", "k", "dense"))
    reads.output(reads.call_function(operator.getitem, (dense, (b, 0, q, k))))
    name = f"_reads_mask_{len(list(emit.module.children()))}"
    emit.module.add_submodule(name, GraphModule({}, reads))
    return (emit.size(mask, 2), emit.size(mask, 3), *lists, None, None, None, None, 128, 128, emit.graph.get_attr(name))


def _lists_of_blocks(mask: Tensor) -> tuple[Any, ...]:
    rows, _, queries, keys = mask.shape
    made = create_block_mask(lambda b, h, q, k: mask[b, 0, q, k], rows, 1, queries, keys, mask.device).as_tuple()
    return tuple(made)[_BLOCKS]


def _with_closures(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: GraphModule,
    block_mask: tuple[Any, ...],
    scale: float,
    options: dict[str, Any],
    score_buffers: tuple[Tensor, ...],
    buffers: tuple[Tensor, ...],
) -> Any:
    """Call flex_attention with closures over what it captured; the arguments are those of torch's operator."""
    *blocks, mask_fn = block_mask
    return flex_attention(
        query,
        key,
        value,
        lambda score, b, h, q, k: score_mod(score, b, h, q, k, *score_buffers),
        (*blocks, lambda b, h, q, k: mask_fn(b, h, q, k, *buffers)),
        scale,
        options,
    )

"""Causal attention inside segments, without a matrix of its mask."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

_CHUNK = 512


def inside(segment: Tensor, rows: Tensor) -> Tensor:
    """Return which keys segments let the tokens at ``rows`` see: those of their own segment, and all outside of any.

    Args:
        segment: ``[B, S]`` int64, -1 for a token outside of all segments, which sees everything.
        rows: ``[B, T]`` int64, the segments of the tokens that look.

    Returns:
        ``[B, T, S]`` bool.
    """
    return (rows < 0)[:, :, None] | (segment < 0)[:, None, :] | (rows[:, :, None] == segment[:, None, :])


@torch.library.custom_op("sharp_compile::segment_attention", mutates_args=())
def segment_attention(query: Tensor, key: Tensor, value: Tensor, segment: Tensor, scale: float | None) -> Tensor:
    """Causal attention in which a visual token sees its own segment and text only, and text everything.

    One operator, since a mask of S x S would be the largest tensor of the layer: on a GPU ``block_sparse``, elsewhere
    the queries are taken in chunks.

    Args:
        query: ``[B, H, S, D]``.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv (grouped-query attention).
        value: ``[B, Hkv, S, Dv]``.
        segment: ``[B, S]`` int64, -1 for text.
        scale: multiplies the products; None for ``D ** -0.5``.

    Returns:
        ``[B, H, S, Dv]``, of the type of ``query``.
    """
    # FlexAttention has no kernel for smaller heads.
    if query.is_cuda and min(query.shape[3], value.shape[3]) >= 16:
        return block_sparse(query, key, value, segment, scale)
    chunks = [_chunk(query, key, value, segment, scale, start) for start in range(0, query.shape[2], _CHUNK)]
    return torch.cat(chunks, dim=2)


def block_sparse(query: Tensor, key: Tensor, value: Tensor, segment: Tensor, scale: float | None) -> Tensor:
    """Return the same by FlexAttention (arXiv 2412.05496), which skips blocks of 128 x 128 that have nothing to see.

    FlexAttention is fast where it is compiled only, so it is compiled here, once for all lengths.
    """
    rows, length = segment.shape

    def visible(row: Tensor, head: Tensor, place: Tensor, other: Tensor) -> Tensor:
        own, seen = segment[row, place], segment[row, other]
        return (other <= place) & ((own < 0) | (seen < 0) | (own == seen))

    blocks = _compiled(create_block_mask)(visible, rows, None, length, length, device=segment.device)
    grouped = key.shape[1] != query.shape[1]
    return _compiled(flex_attention)(query, key, value, block_mask=blocks, scale=scale, enable_gqa=grouped)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Its calls may be part of a CUDA graph themselves, and what they return outlives the next one.
    return torch.compile(function, dynamic=True, options={"triton.cudagraphs": False})


def _chunk(query: Tensor, key: Tensor, value: Tensor, segment: Tensor, scale: float | None, start: int) -> Tensor:
    rows, seen, visible = _visible(segment, start)
    grouped = key.shape[1] != query.shape[1]
    return F.scaled_dot_product_attention(
        query[:, :, rows], key[:, :, seen], value[:, :, seen], visible[:, None], scale=scale, enable_gqa=grouped
    )


def _visible(segment: Tensor, start: int) -> tuple[slice, slice, Tensor]:
    """Return the rows of a chunk, the keys that are not all after it, and which of these they see."""
    end = min(start + _CHUNK, segment.shape[1])
    rows, seen = slice(start, end), slice(0, end)
    position = torch.arange(end, device=segment.device)
    return rows, seen, inside(segment[:, seen], segment[:, rows]) & (position <= position[rows, None])


@segment_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, segment: Tensor, scale: float | None) -> Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.scale = inputs[4]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, segment = ctx.saved_tensors
    return (*_gradients(gradient, *inputs, segment, ctx.scale), None, None)


@torch.library.custom_op("sharp_compile::segment_attention_backward", mutates_args=())
def _gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, segment: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute each chunk's probabilities once more: no more is stored than for one."""
    kv_heads, factor = key.shape[1], query.shape[-1] ** -0.5 if scale is None else scale
    of_query, of_key, of_value = (torch.zeros(each.shape, device=each.device) for each in (query, key, value))
    for start in range(0, query.shape[2], _CHUNK):
        rows, seen, visible = _visible(segment, start)
        # The query heads of a key head share an axis of their own.
        q, g = (each[:, :, rows].float().unflatten(1, (kv_heads, -1)) for each in (query, gradient))
        k, v = (each[:, :, None, seen].float() for each in (key, value))
        scores = (q @ k.mT * factor).masked_fill(~visible[:, None, None], float("-inf"))
        shares = scores.softmax(-1)
        of_shares = g @ v.mT
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * factor
        of_query[:, :, rows] = (of_scores @ k).flatten(1, 2)
        of_key[:, :, seen] += (of_scores.mT @ q).sum(2)
        of_value[:, :, seen] += (shares.mT @ g).sum(2)
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)


@_gradients.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, segment: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


segment_attention.register_autograd(_backward, setup_context=_save)

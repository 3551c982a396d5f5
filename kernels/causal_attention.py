"""Causal attention with padding, without a matrix of its mask."""

from __future__ import annotations

import sympy
import torch
from torch import Tensor

from . import mask_formula
from .masked_attention import like_output, masked_attention

_CAUSAL_AND_VISIBLE = mask_formula.write(sympy.And(mask_formula.CAUSAL, sympy.Ne(mask_formula.key_symbol(0), 0)))


@torch.library.custom_op("sharp_compile::causal_attention", mutates_args=())
def causal_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """Return attention of each token to itself and to those before it, padding left out.

    Which tokens are padding is data. So this is one operator for all calls, and none has to look at the data ahead: the
    flash kernel of a CPU takes a bias of the keys beside its causal order, that of a GPU sequences of lengths that it
    reads itself.

    Args:
        query: ``[B, H, S, D]``.
        key: ``[B, Hkv, L, D]``, H a multiple of Hkv (grouped-query attention), L at least S: what is after S keys is
            slack of a cache.
        value: ``[B, Hkv, L, Dv]``.
        visible: ``[B, S]`` bool, False for padding.
        scale: multiplies the products; None for ``D ** -0.5``.

    Returns:
        ``[B, H, S, Dv]``, of the type of ``query``. What padding itself gets is finite, and else not said.
    """
    rows, _, length, channels = query.shape
    key, value = key[:, :, :length], value[:, :, :length]
    if query.device.type == "cpu" and channels == value.shape[3]:
        return _with_bias(query, key, value, visible, scale)
    halves = query.dtype in (torch.float16, torch.bfloat16) and channels == value.shape[3]
    if query.device.type == "cuda" and halves and channels <= 256 and channels % 8 == 0:
        return by_lengths(query, key, value, visible, scale)
    places = torch.arange(length, device=query.device).expand(rows, -1)
    return masked_attention(query, key, value, places, places, [], [visible], _CAUSAL_AND_VISIBLE, scale)


def _with_bias(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    share = query.shape[1] // key.shape[1]
    bias = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, float("-inf"))[:, None, None]
    output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query,
        key.repeat_interleave(share, 1) if share > 1 else key,
        value.repeat_interleave(share, 1) if share > 1 else value,
        0.0,
        True,
        attn_mask=bias,
        scale=scale,
    )[0]
    return output


def by_lengths(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """Return the same by the flash kernel for sequences of different lengths (FlashAttention-2, arXiv 2307.08691).

    Each row becomes two sequences: its real tokens, moved together, and its padding.
    """
    rows, heads, length, channels = query.shape
    order = (~visible).to(torch.uint8).argsort(dim=1, stable=True)
    begins = torch.arange(rows, device=visible.device) * length
    ends = torch.stack([begins + visible.sum(1), begins + length], 1).flatten()
    bounds = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
    places = (order + begins[:, None]).flatten()
    packed_query, packed_key, packed_value = (
        each.transpose(1, 2).flatten(0, 1).index_select(0, places) for each in (query, key, value)
    )
    taken = flash_of_lengths(packed_query, packed_key, packed_value, bounds, length, scale)
    output = torch.empty_like(taken).index_copy_(0, places, taken).view(rows, length, heads, channels)
    return like_output(query, value).copy_(output.transpose(1, 2))


def flash_of_lengths(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None
) -> Tensor:
    """Return causal attention within sequences that lie one after the other, by a GPU's kernel.

    Args:
        query: ``[T, H, D]``, float16 or bfloat16; ``key`` and ``value`` alike, ``[T, Hkv, D]``.
        key: see there.
        value: see there.
        bounds: int32, where each sequence begins and, last, where the last one ends.
        longest: no sequence has more tokens.
        scale: multiplies the products; None for ``D ** -0.5``.

    Returns:
        ``[T, H, D]``.
    """
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, longest, longest, 0.0, True, False, scale=scale
    )[0]
    return output


@causal_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    return like_output(query, value)

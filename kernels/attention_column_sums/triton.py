"""Received attention in two Triton kernels, on tiles of keys that stay on the chip.

Every query row is needed by every key, and T rows of all heads are small, so each program takes one tile of
keys of one key head and walks over all query rows of that head: the G * T rows of its G query heads follow
each other in the M dimension of the matrix product. Keys are read once by each kernel.

The softmax needs what a row sums up to over all tiles. The first kernel writes the log-sum-exp of each row
over its own tile, one number a row and tile; ``logsumexp`` over the tiles joins them; the second kernel
computes the products again, as probabilities, and sums them over the rows. Programs share nothing, and all sums
have a fixed order: no atomics, the same bits in every run.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of kernels have the types of what they are launched with)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

_LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class Tiles:
    """Block sizes and launch options of both kernels."""

    rows: int
    keys: int
    head_dim: int
    num_warps: int
    num_stages: int


def tiles(rows: int, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Return what to launch for ``rows`` query rows a key head (G * T), of ``head_dim`` numbers of ``dtype``.

    The key tile and the stages of the query tile fit in 99 KiB of shared memory, which every GPU since Ampere
    has. float32 is multiplied without matrix instructions, which would round it: its tiles are smaller.
    """
    padded = max(16, triton.next_power_of_2(head_dim))
    if padded > 256:
        most_rows, keys, warps, stages = 16, 32, 4, 1
    elif dtype == torch.float32:
        most_rows, keys, warps, stages = 32, 64, 8, 1
    elif padded == 256:
        most_rows, keys, warps, stages = 64, 64, 8, 2
    else:
        most_rows, keys, warps, stages = 64, 128, 8, 2
    return Tiles(min(most_rows, max(16, triton.next_power_of_2(rows))), keys, padded, warps, stages)


def attention_column_sums(query: Tensor, key: Tensor, weight: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """See ``sharp_compile.kernels.attention_column_sums.attention_column_sums``."""
    batch, heads, rows, head_dim = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    packed = heads // kv_heads * rows
    how = tiles(packed, head_dim, query.dtype)
    count = (length + how.keys - 1) // how.keys
    partial = torch.empty((batch, kv_heads, count, packed), dtype=torch.float32, device=query.device)
    sums = torch.empty((batch, kv_heads, length), dtype=torch.float32, device=query.device)
    additive = mask is not None and mask.dtype != torch.bool
    # Without a mask any tensor stands in for it: no line that reads it is compiled.
    seen = weight.unsqueeze(1).unsqueeze(3) if mask is None else mask
    mask_strides = seen.expand(batch, heads, rows, length).stride()
    common = {
        "query": query,
        "key": key,
        "mask": seen,
        "rows": rows,
        "packed": packed,
        "length": length,
        "head_dim": head_dim,
        "scale": scale,
        "query_batch": query.stride(0),
        "query_head": query.stride(1),
        "query_row": query.stride(2),
        "query_dim": query.stride(3),
        "key_batch": key.stride(0),
        "key_head": key.stride(1),
        "key_token": key.stride(2),
        "key_dim": key.stride(3),
        "mask_batch": mask_strides[0],
        "mask_head": mask_strides[1],
        "mask_row": mask_strides[2],
        "mask_token": mask_strides[3],
        "MASKED": mask is not None,
        "ADDITIVE": additive,
        "HIDDEN": torch.finfo(seen.dtype).min / 2 if additive else 0.0,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "ROWS": how.rows,
        "KEYS": how.keys,
        "DIM": how.head_dim,
        "num_warps": how.num_warps,
        "num_stages": how.num_stages,
    }
    grid = (count, kv_heads, batch)
    wrap_triton(_logsumexp_of_tiles)[grid](partial=partial, **common)
    logsumexp = partial.logsumexp(2)
    wrap_triton(_column_sums)[grid](
        logsumexp=logsumexp,
        weight=weight,
        weight_batch=weight.stride(0),
        weight_row=weight.stride(1),
        sums=sums,
        **common,
    )
    return sums.sum(1) / heads


@triton.jit
def _key_tile(
    key, tile, length, head_dim, key_batch, key_head, key_token, key_dim, KEYS: tl.constexpr, DIM: tl.constexpr
):
    """Keys ``[KEYS, DIM]`` of tile number ``tile``; zeros after the end."""
    token = tile.to(tl.int64) * KEYS + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM)
    start = tl.program_id(2).to(tl.int64) * key_batch + tl.program_id(1).to(tl.int64) * key_head
    where = start + token[:, None] * key_token + dim[None, :] * key_dim
    return tl.load(key + where, mask=(token < length)[:, None] & (dim < head_dim)[None, :], other=0.0)


@triton.jit
def _logits(
    query, keys, mask, first, rows, packed, length, head_dim, scale,
    query_batch, query_head, query_row, query_dim, mask_batch, mask_head, mask_row, mask_token,
    MASKED: tl.constexpr, ADDITIVE: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Logits ``[ROWS, KEYS]`` times log2(e), of packed rows ``first`` and on; minus infinity where hidden."""
    row = first + tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    token = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    # Packed row number g * T + t is row t of the g-th query head that shares this key head.
    head = (tl.program_id(1) * (packed // rows) + row // rows).to(tl.int64)
    line = (row % rows).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    where = batch * query_batch + (head * query_head + line * query_row)[:, None] + dim[None, :] * query_dim
    queries = tl.load(query + where, mask=(row < packed)[:, None] & (dim < head_dim)[None, :], other=0.0)
    # Inductor hands the scale over in float64: all that follows would be computed in it.
    logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (tl.cast(scale, tl.float32) * _LOG2_E)
    visible = (row < packed)[:, None] & (token < length)[None, :]
    if MASKED:
        place = batch * mask_batch + (head * mask_head + line * mask_row)[:, None] + (token * mask_token)[None, :]
        if ADDITIVE:
            bias = tl.load(mask + place, mask=visible, other=0.0).to(tl.float32)
            visible = visible & (bias > HIDDEN)
            logits += bias * _LOG2_E
        else:
            visible = visible & (tl.load(mask + place, mask=visible, other=0) != 0)
    return tl.where(visible, logits, float("-inf"))


@triton.jit
def _logsumexp_of_tiles(
    query, key, mask, partial, rows, packed, length, head_dim, scale,
    query_batch, query_head, query_row, query_dim, key_batch, key_head, key_token, key_dim,
    mask_batch, mask_head, mask_row, mask_token,
    MASKED: tl.constexpr, ADDITIVE: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the log-sum-exp of each packed row over one key tile to ``partial`` ``[B, Hkv, tiles, G * T]``."""
    tile = tl.program_id(0)
    keys = _key_tile(key, tile, length, head_dim, key_batch, key_head, key_token, key_dim, KEYS, DIM)
    place = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tl.num_programs(0) + tile
    for first in range(0, packed, ROWS):
        logits = _logits(
            query, keys, mask, first, rows, packed, length, head_dim, scale,
            query_batch, query_head, query_row, query_dim, mask_batch, mask_head, mask_row, mask_token,
            MASKED, ADDITIVE, HIDDEN, PRECISION, ROWS, KEYS, DIM,
        )  # fmt: skip
        highest = tl.max(logits, 1)
        # A row that sees nothing here: infinity minus infinity would be NaN; log2(0) is what it should be.
        highest = tl.where(highest == float("-inf"), 0.0, highest)
        total = highest + tl.log2(tl.sum(tl.exp2(logits - highest[:, None]), 1))
        row = first + tl.arange(0, ROWS)
        tl.store(partial + place * packed + row, total / _LOG2_E, mask=row < packed)


@triton.jit
def _column_sums(
    query, key, mask, logsumexp, weight, sums, rows, packed, length, head_dim, scale,
    query_batch, query_head, query_row, query_dim, key_batch, key_head, key_token, key_dim,
    mask_batch, mask_head, mask_row, mask_token, weight_batch, weight_row,
    MASKED: tl.constexpr, ADDITIVE: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the weighted sums over the rows of one key head, for one key tile, to ``sums`` ``[B, Hkv, S]``."""
    tile = tl.program_id(0)
    keys = _key_tile(key, tile, length, head_dim, key_batch, key_head, key_token, key_dim, KEYS, DIM)
    batch = tl.program_id(2).to(tl.int64)
    place = batch * tl.num_programs(1) + tl.program_id(1)
    received = tl.zeros([ROWS, KEYS], dtype=tl.float32)
    for first in range(0, packed, ROWS):
        logits = _logits(
            query, keys, mask, first, rows, packed, length, head_dim, scale,
            query_batch, query_head, query_row, query_dim, mask_batch, mask_head, mask_row, mask_token,
            MASKED, ADDITIVE, HIDDEN, PRECISION, ROWS, KEYS, DIM,
        )  # fmt: skip
        row = first + tl.arange(0, ROWS)
        inside = row < packed
        total = tl.load(logsumexp + place * packed + row, mask=inside, other=0.0) * _LOG2_E
        # Minus infinity for a row that sees nothing: with plus infinity its probabilities are zeros, not NaN.
        total = tl.where(total == float("-inf"), float("inf"), total)
        share = tl.load(weight + batch * weight_batch + (row % rows) * weight_row, mask=inside, other=0.0)
        # A row of weight 0 (padding) may be NaN.
        received += tl.where(share[:, None] != 0, tl.exp2(logits - total[:, None]) * share[:, None], 0.0)
    token = tile.to(tl.int64) * KEYS + tl.arange(0, KEYS)
    tl.store(sums + place * length + token, tl.sum(received, 0), mask=token < length)

"""Greedy deduplication on a GPU, in blocks of candidates, two launches each.

The walk is sequential, but for most candidates what decides is far ahead of them: the tokens kept in earlier
blocks. So the candidates are walked in blocks. ``_compare`` does all arithmetic of a block with matrix
instructions: which of its candidates are near copies of tokens kept before it, and which are near copies of
each other, one bit a pair. ``_resolve``, one program for each row of the batch, decides the block from these bits
alone: every undecided candidate without an undecided or kept near copy ahead of it is kept, then the near
copies of kept ones are dropped, and so on until all are decided, which is exactly the result of the walk. Then
it appends what is kept to a list of positions, whose length stays on the device: the host launches all blocks
without waiting, and blocks after the end of a row's walk return at once.

No vector is copied or normalised: the products of the vectors as they are, exact in float32 for 16-bit types,
are multiplied by the inverse lengths, so nothing is rounded before it is compared with the threshold.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (the arguments of kernels have the types of what they are launched with)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Block sizes and launch options: a block is BLOCK candidates, a tile of products TILE x TILE, DEPTH deep."""

    block: int
    tile: int
    depth: int
    slices: int
    num_warps: int
    num_stages: int


def tiles(dtype: torch.dtype) -> Tiles:
    """Return what to launch for vectors of ``dtype``.

    A block of 512 against 64 slices of the kept tokens is enough work for a large GPU at every step. The
    operands of three stages fit in 99 KiB of shared memory, which every GPU since Ampere has. float32 is
    multiplied without matrix instructions, which would round it: its tiles are smaller.
    """
    if dtype == torch.float32:
        return Tiles(512, 64, 32, 64, 8, 1)
    return Tiles(512, 128, 64, 64, 8, 3)


def greedy_cosine_dedup(
    vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float, how: Tiles | None = None
) -> Tensor:
    """See ``sharp_compile.kernels.greedy_cosine_dedup.greedy_cosine_dedup``; ``how`` is for tests."""
    how = how or tiles(vectors.dtype)
    batch, length, features = vectors.shape
    device = vectors.device
    order = order.contiguous()
    norm = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float32)
    inverse = torch.where(norm > 0, 1 / norm, 0.0)
    skipped = torch.zeros((batch, length), dtype=torch.bool, device=device)
    # Positions of kept tokens, in the order of the walk: never more than there are tokens.
    kept = torch.empty((batch, length), dtype=torch.int32, device=device)
    count = torch.zeros(batch, dtype=torch.int32, device=device)
    hits = torch.empty((batch, how.slices, how.block), dtype=torch.int8, device=device)
    pairs = torch.empty((batch, how.block, how.block // 32), dtype=torch.int32, device=device)
    strips = how.block // how.tile
    for start in range(0, length, how.block):
        _compare[strips, how.slices + strips, batch](
            vectors, inverse, order, candidates, budget, kept, count, hits, pairs,
            start, length, features, float(threshold), *vectors.stride(),
            "ieee" if vectors.dtype == torch.float32 else "tf32", how.block, how.tile, how.depth, how.slices,
            num_warps=how.num_warps, num_stages=how.num_stages,
        )  # fmt: skip
        _resolve[batch,](
            order, candidates, budget, kept, count, hits, pairs, skipped,
            start, length, how.block, how.tile, how.slices, num_warps=8,
        )  # fmt: skip
    return skipped


@triton.jit
def _compare(
    vectors, inverse, order, candidates, budget, kept, count, hits, pairs,
    start, length, features, threshold, stride_batch, stride_token, stride_feature,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Compare TILE candidates of the block with one slice of what is kept, or with TILE others of the block.

    Programs ``(strip, slice, row)`` with a slice below SLICES write to ``hits`` ``[B, SLICES, BLOCK]`` which
    candidates are near copies of a kept token whose tile is the slice's turn; those above write the pairs
    within the block to ``pairs`` ``[B, BLOCK, BLOCK / 32]``, bit j of word w for candidate 32 w + j.
    """
    strip, part = tl.program_id(0), tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    known = tl.load(count + batch)
    walk = tl.minimum(tl.load(candidates + batch), length).to(tl.int32)
    if known >= tl.load(budget + batch) or start + strip * TILE >= walk:
        return
    inside = part >= SLICES
    # Within the block only pairs with an earlier candidate matter.
    if part - SLICES > strip:
        return
    vectors += batch * stride_batch
    inverse += batch * length
    lane = tl.arange(0, TILE)
    depth = tl.arange(0, DEPTH)
    place = start + strip * TILE + lane
    here = tl.load(order + batch * length + place, mask=place < walk, other=0)
    here_scale = tl.load(inverse + here, mask=place < walk, other=0.0)
    here_row = vectors + here[:, None] * stride_token
    seen = tl.zeros([TILE], dtype=tl.int32)
    tile = tl.where(inside, part - SLICES, part)
    last = tl.where(inside, tile + 1, (known + TILE - 1) // TILE)
    end_ahead = tl.where(inside, walk - start, 0)
    end_kept = tl.where(inside, 0, known)
    while tile < last:
        other = tile * TILE + lane
        valid = other < end_ahead + end_kept
        ahead = tl.load(order + batch * length + start + other, mask=other < end_ahead, other=0)
        there = ahead + tl.load(kept + batch * length + other, mask=other < end_kept, other=0)
        there_scale = tl.load(inverse + there, mask=valid, other=0.0)
        there_row = vectors + there[:, None] * stride_token
        products = tl.zeros([TILE, TILE], dtype=tl.float32)
        for first in range(0, features, DEPTH):
            column = (first + depth).to(tl.int64)
            read = (column < features)[None, :]
            a = tl.load(here_row + column[None, :] * stride_feature, mask=(place < walk)[:, None] & read, other=0.0)
            b = tl.load(there_row + column[None, :] * stride_feature, mask=valid[:, None] & read, other=0.0)
            products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)
        cosine = products * here_scale[:, None] * there_scale[None, :]
        near = (cosine > tl.cast(threshold, tl.float32)) & valid[None, :]
        if inside:
            words = _pack(tl.reshape(near, [TILE * (TILE // 32), 32]))
            word = tile * (TILE // 32) + tl.arange(0, TILE // 32)
            where = (strip * TILE + lane)[:, None] * (BLOCK // 32) + word[None, :]
            tl.store(pairs + batch * BLOCK * (BLOCK // 32) + where, tl.reshape(words, [TILE, TILE // 32]))
        else:
            seen = seen | tl.max(near.to(tl.int32), 1)
        tile += SLICES
    if part < SLICES:
        tl.store(hits + (batch * SLICES + part) * BLOCK + strip * TILE + lane, seen.to(tl.int8))


@triton.jit
def _pack(flags):
    """Booleans ``[N, 32]`` as the bits of ``[N]`` int32."""
    return tl.xor_sum(flags.to(tl.int32) << tl.arange(0, 32)[None, :], 1)


@triton.jit
def _resolve(
    order, candidates, budget, kept, count, hits, pairs, skipped, start, length,
    BLOCK: tl.constexpr, TILE: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Walk one block of one row, given all comparisons: write ``skipped``, append to ``kept``."""
    batch = tl.program_id(0).to(tl.int64)
    known = tl.load(count + batch)
    wanted = tl.minimum(tl.load(budget + batch), length).to(tl.int32)
    walk = tl.minimum(tl.load(candidates + batch), length).to(tl.int32)
    if known >= wanted or start >= walk:
        return
    WORDS: tl.constexpr = BLOCK // 32
    lane = tl.arange(0, BLOCK)
    valid = start + lane < walk
    slices = tl.arange(0, SLICES)
    # Slices whose turn never came wrote zeros; candidates after the end wrote nothing.
    found = tl.load(hits + (batch * SLICES + slices[:, None]) * BLOCK + lane[None, :], mask=valid[None, :], other=0)
    copies = tl.max(found.to(tl.int32), 0) > 0
    word = tl.arange(0, WORDS)
    # Of the pairs, those with a candidate ahead: all bits of earlier words, the lower ones of its own.
    earlier = lane[:, None] - word[None, :] * 32
    ahead = tl.where(earlier >= 32, -1, (1 << tl.maximum(tl.minimum(earlier, 31), 0)) - 1)
    read = valid[:, None] & (earlier > 0)
    near = tl.load(pairs + (batch * BLOCK + lane[:, None]) * WORDS + word[None, :], mask=read, other=0) & ahead

    undecided = valid & (copies == 0)
    keeps = lane < 0
    while tl.max(undecided.to(tl.int32), 0) > 0:
        # One bit a candidate, laid out like the pairs.
        open_words = _pack(tl.reshape(undecided, [WORDS, 32]))
        first = undecided & (tl.max(((near & open_words[None, :]) != 0).to(tl.int32), 1) == 0)
        first_words = _pack(tl.reshape(first, [WORDS, 32]))
        dropped = tl.max(((near & first_words[None, :]) != 0).to(tl.int32), 1) > 0
        keeps = keeps | first
        undecided = undecided & (first == 0) & (dropped == 0)

    rank = known + tl.cumsum(keeps.to(tl.int32), 0) - keeps.to(tl.int32)
    position = tl.load(order + batch * length + start + lane, mask=valid, other=0)
    # The walk ends with the last one that fits into the budget.
    walked = valid & (rank < wanted)
    tl.store(skipped + batch * length + position, keeps == 0, mask=walked)
    tl.store(kept + batch * length + rank, position.to(tl.int32), mask=walked & keeps)
    tl.store(count + batch, known + tl.sum((walked & keeps).to(tl.int32), 0))

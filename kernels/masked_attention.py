"""Attention under a mask that is a formula, without a matrix of the mask."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor

from . import mask_formula

_CHUNK = 256


@torch.library.custom_op("sharp_compile::masked_attention", mutates_args=())
def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    columns: Tensor,
    of_query: Sequence[Tensor],
    of_key: Sequence[Tensor],
    formula: str,
    scale: float | None,
) -> Tensor:
    """Return attention of queries to those keys that a formula lets them see.

    The queries are taken in chunks, and the mask of a chunk is made for it. On a CPU a causal formula or a window
    leaves out the keys that a chunk can't see; on a GPU that would be a wait for their positions.

    Args:
        query: ``[B, H, Sq, D]``.
        key: ``[B, Hkv, L, D]``, H a multiple of Hkv (grouped-query attention), L at least Sk: what is after Sk keys is
            slack of a cache, which no query sees.
        value: ``[B, Hkv, L, Dv]``.
        rows: ``[B, Sq]`` int64, the positions of the queries, ascending.
        columns: ``[B, Sk]`` int64, the positions of the keys, ascending.
        of_query: ``[B, Sq]`` each, what the formula's ``query_0``, ``query_1``, ... are.
        of_key: ``[B, Sk]`` each, what the formula's ``key_0``, ``key_1``, ... are.
        formula: as ``mask_formula.write`` writes it.
        scale: multiplies the products; None for ``D ** -0.5``.

    Returns:
        ``[B, H, Sq, Dv]``, of the type of ``query``. A query that sees no key gets zeros.
    """
    visible, share = mask_formula.read(formula), query.shape[1] // key.shape[1]
    if share > 1 and query.is_cuda:
        # The kernel of a GPU that takes a mask knows no shared heads: all scores of a chunk would be stored.
        key, value = (each.repeat_interleave(share, dim=1) for each in (key, value))
    grouped = key.shape[1] != query.shape[1]
    output = like_output(query, value)
    for chunk, seen in _chunks(visible, rows, columns):
        values = mask_formula.values_at(
            rows[:, chunk], columns[:, seen], [each[:, chunk] for each in of_query], [each[:, seen] for each in of_key]
        )
        shape = (len(rows), 1, chunk.stop - chunk.start, seen.stop - seen.start)
        output[:, :, chunk] = F.scaled_dot_product_attention(
            query[:, :, chunk],
            key[:, :, seen],
            value[:, :, seen],
            mask_formula.evaluate(visible, values).expand(shape),
            scale=scale,
            enable_gqa=grouped,
        )
    return output


def _chunks(visible: sympy.Basic, rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield chunks of the queries, each with the keys that they may see."""
    bounds = [*range(0, rows.shape[1], _CHUNK), rows.shape[1]]
    looks = _reads_at_once(rows)
    is_causal, window = looks and mask_formula.is_causal(visible), mask_formula.window(visible) if looks else None
    for start, end in itertools.pairwise(bounds):
        first, last = 0, columns.shape[1]
        if is_causal:
            ends = torch.searchsorted(columns.contiguous(), rows[:, end - 1 : end].contiguous(), right=True)
            last = max(int(ends.max()), 1)
        if window is not None:
            begins = torch.searchsorted(columns.contiguous(), (rows[:, start : start + 1] - window + 1).contiguous())
            first = min(int(begins.min()), last - 1)
        yield slice(start, end), slice(first, last)


def _reads_at_once(positions: Tensor) -> bool:
    """Return whether the host has the values of a tensor without a wait."""
    return positions.device.type == "cpu"


def like_output(query: Tensor, value: Tensor) -> Tensor:
    """Return an empty output ``[B, H, Sq, Dv]``, in memory as ``query`` is where it has as many channels."""
    if query.shape[3] == value.shape[3]:
        return torch.empty_like(query)
    return query.new_empty((*query.shape[:3], value.shape[3]))


@masked_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return like_output(query, value)

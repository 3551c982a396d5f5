"""The form that is traced into graphs for the CPU: Inductor fuses all but the one product of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_rows import to_bool_mask


def attention_column_sums(
    query: Tensor, key: Tensor, weight: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """See ``kernels.attention_column_sums``."""
    heads, rows, width = query.shape[1:]
    groups = heads // key.shape[1]
    # The query heads of a key head are one matrix, so that no key is repeated.
    counts = (weight != 0)[:, None, :, None]
    packed = query.float().where(counts, 0).reshape(query.shape[0], key.shape[1], groups * rows, width)
    scores = packed @ key.float().transpose(-1, -2) * (width**-0.5 if scale is None else scale)
    scores = scores.view(query.shape[0], heads, rows, key.shape[2])
    limits = torch.finfo(torch.float32)
    if mask is not None:
        scores = scores if mask.dtype == torch.bool else scores + mask.float()
        scores = scores.masked_fill(~to_bool_mask(mask), float("-inf"))
    shifted = (scores - scores.amax(-1, keepdim=True).clamp_min(limits.min)).exp()
    share = weight[:, None, :, None] / heads / shifted.sum(-1, keepdim=True).clamp_min(limits.tiny)
    return (shifted * share).sum((1, 2))

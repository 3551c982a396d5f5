"""Received attention by its definition, with the whole matrix of the chosen rows."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_column_sums(query: Tensor, key: Tensor, weight: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """See ``sharp_compile.kernels.attention_column_sums.attention_column_sums``."""
    key = key.float().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.transpose(-1, -2) * scale
    visible = torch.ones_like(logits, dtype=torch.bool)
    if mask is not None and mask.dtype == torch.bool:
        visible = mask.expand_as(logits)
    elif mask is not None:
        visible = (mask > torch.finfo(mask.dtype).min / 2).expand_as(logits)
        logits = logits + mask.float()
    # softmax of a row that sees nothing is NaN.
    probability = logits.masked_fill(~visible, float("-inf")).softmax(-1).masked_fill(~visible, 0.0)
    weight = weight[:, None, :, None]
    return (probability * weight).where(weight != 0, 0.0).sum(2).mean(1)

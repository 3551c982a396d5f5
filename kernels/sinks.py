"""Sinks of an attention as one more key, for whoever knows keys and masks only."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_rows import to_bool_mask


def sinks_as_key(key: Tensor, mask: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and a mask with one more key, the last, which stands for the sinks: its product with a query is 0.

    Args:
        key: ``[B, Hkv, S, D]``.
        mask: the rows of some queries, boolean (True: may be seen) or additive, broadcastable to ``[B, H, T, S]``.
        sinks: the logit that each query has beside those of the keys, broadcastable to ``[B, H, T, 1]``.

    Returns:
        ``[B, Hkv, S + 1, D]``, and the additive mask in float32, broadcastable to ``[B, H, T, S + 1]``.
    """
    added = torch.zeros_like(mask, dtype=torch.float32) if mask.dtype == torch.bool else mask.float()
    added = added.masked_fill(~to_bool_mask(mask), float("-inf"))
    column = sinks.float() + torch.zeros_like(added[..., :1])
    added = torch.cat([added.expand(*column.shape[:-1], added.shape[-1]), column], -1)
    return torch.cat([key, torch.zeros_like(key[:, :, :1])], 2), added

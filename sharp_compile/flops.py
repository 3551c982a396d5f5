"""Counting floating-point operations by PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter, taught the one operator that it lacks: attention on a CPU.

    A multiplication and an addition are two operations. Attention is counted in full, masked or not.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    return FlopCounterMode(display=False, custom_mapping={attention: flops})

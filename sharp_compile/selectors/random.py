"""Visual tokens by lot."""

import torch
from torch import Tensor

from ..selector_registry import register_selector
from .context import Context

_MASK = 2**31 - 1


@register_selector("random", needs_attention=False, merges=False, options=("seed",))
def random(ctx: Context, seed: int) -> Tensor:
    """Return scores that depend on the seed, the row and the position only.

    They come from integer arithmetic, not from PyTorch's generator: a graph gives the same tokens in every
    run, on every device, under every inner backend, and leaves the generator's state alone.

    Returns:
        ``[B, S]`` float32 in [0, 1).
    """
    rows, length = ctx.is_visual.shape
    device = ctx.is_visual.device
    row = torch.arange(rows, device=device)[:, None]
    position = torch.arange(length, device=device)
    mixed = _mix(_mix(position) + row)
    for part in (seed, seed >> 31, seed >> 62):
        mixed = _mix(mixed + (part & _MASK))
    return (mixed >> 7).to(torch.float32) / 2**24


def _mix(value: Tensor) -> Tensor:
    """Mix the low 31 bits of int64 numbers: a multiply-xorshift hash whose products stay below 2**62."""
    value = value & _MASK
    for factor in (0x45D9F3B, 0x119DE1F3):
        value = ((value ^ (value >> 16)) * factor) & _MASK
    return value ^ (value >> 15)

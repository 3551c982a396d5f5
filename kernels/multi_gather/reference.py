"""The gathers one by one, in plain PyTorch: the form that is traced into graphs for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def multi_gather(values: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
    """See ``sharp_compile.kernels.multi_gather.multi_gather``."""
    rows, kept = positions.shape
    results = []
    for value in values:
        sizes = (rows, value.shape[1], kept, value.shape[3])
        # Not take_along_dim, which broadcasts in the same way but turns symbolic sizes into numbers.
        index = positions[:, None, :, None].expand(sizes)
        results.append(value.expand(rows, -1, -1, -1).gather(2, index))
    return results

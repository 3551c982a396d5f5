"""The operator ``sharp_compile::near_copies``: one, since its steps depend on the values of those before."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from . import blocked

_HAS_TRITON = find_spec("triton") is not None


@torch.library.custom_op("sharp_compile::near_copies", mutates_args=())
def near_copies(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    """See `sharp_compile.kernels.near_copies.near_copies`."""
    if vectors.is_cuda and _HAS_TRITON:
        from . import triton

        return triton.near_copies(vectors, order, candidates, budget, threshold)
    return blocked.near_copies(vectors, order, candidates, budget, threshold)


@near_copies.register_fake
def _(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    return torch.empty(vectors.shape[:2], dtype=torch.bool, device=vectors.device)

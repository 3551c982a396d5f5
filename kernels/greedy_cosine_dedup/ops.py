"""The operator ``sharp_compile::greedy_cosine_dedup``: one, since its steps depend on the values of those before."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from . import blocked

_HAS_TRITON = find_spec("triton") is not None


@torch.library.custom_op("sharp_compile::greedy_cosine_dedup", mutates_args=())
def greedy_cosine_dedup(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    """See ``sharp_compile.kernels.greedy_cosine_dedup.greedy_cosine_dedup``."""
    if vectors.is_cuda and _HAS_TRITON:
        from . import triton

        return triton.greedy_cosine_dedup(vectors, order, candidates, budget, threshold)
    return blocked.greedy_cosine_dedup(vectors, order, candidates, budget, threshold)


@greedy_cosine_dedup.register_fake
def _(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    return torch.empty(vectors.shape[:2], dtype=torch.bool, device=vectors.device)

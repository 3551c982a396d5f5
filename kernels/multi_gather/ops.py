"""The operator ``sharp_compile::multi_gather`` with its gradient.

A ``custom_op``, not a ``triton_op``: its kernel takes tuples of tensors, which Inductor can't launch itself,
and copies leave nothing to fuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference


@torch.library.custom_op("sharp_compile::multi_gather", mutates_args=())
def multi_gather(values: list[Tensor], positions: Tensor) -> list[Tensor]:
    """See ``sharp_compile.kernels.multi_gather.multi_gather``."""
    if positions.is_cuda:
        from . import triton

        return triton.multi_gather(values, positions)
    return reference.multi_gather(values, positions)


@multi_gather.register_fake
def _(values: list[Tensor], positions: Tensor) -> list[Tensor]:
    rows, kept = positions.shape
    return [value.new_empty((rows, value.shape[1], kept, value.shape[3])) for value in values]


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], Tensor], output: list[Tensor]) -> None:
    values, positions = inputs
    ctx.save_for_backward(positions)
    ctx.shapes = [value.shape for value in values]


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[list[Tensor | None], None]:
    (positions,) = ctx.saved_tensors
    results: list[Tensor | None] = []
    for grad, shape in zip(grads, ctx.shapes, strict=True):
        if grad is None:
            results.append(None)
            continue
        # Positions are unique in a row: each number has one place, and no order of sums matters.
        spread = grad.new_zeros((grad.shape[0], *shape[1:]))
        spread = spread.scatter(2, positions[:, None, :, None].expand(grad.shape), grad)
        results.append(spread.sum_to_size(shape))
    return results, None


multi_gather.register_autograd(_backward, setup_context=_setup_context)

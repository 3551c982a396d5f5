"""Several tensors at the same kept positions.

``reference`` is plain PyTorch, ``triton`` what GPUs run and ``ops`` its operator; ``cost`` says what it should
take.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from torch import Tensor

from . import reference

__all__ = ["multi_gather"]

_HAS_TRITON = find_spec("triton") is not None


def multi_gather(values: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
    """``values[i][b, p, positions[b, n], q]`` for each of the values.

    On a GPU one launch copies up to eight of them.

    Args:
        values: each ``[B or 1, P, S, Q]`` with P and Q of its own, of any type and with any strides. One row is
            read for every row of the positions.
        positions: ``[B, N]`` int64, unique in each row. Differentiable in the values.

    Returns:
        A tensor ``[B, P, N, Q]`` for each value, contiguous, of its type.
    """
    if positions.is_cuda and _HAS_TRITON:
        from . import ops

        return ops.multi_gather(list(values), positions)
    return reference.multi_gather(values, positions)

"""The operator ``sharp_compile::attention_column_sums``. Importing this file needs Triton."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from .reference import attention_column_sums as _anywhere
from .triton import attention_column_sums as _on_gpu


@triton_op("sharp_compile::attention_column_sums", mutates_args=())
def attention_column_sums(query: Tensor, key: Tensor, weight: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """See ``sharp_compile.kernels.attention_column_sums.attention_column_sums``."""
    # Inside, and not as a kernel of the dispatcher: AOTAutograd traces this body for the device of its tensors.
    if query.is_cuda:
        return _on_gpu(query, key, weight, mask, scale)
    return _anywhere(query, key, weight, mask, scale)

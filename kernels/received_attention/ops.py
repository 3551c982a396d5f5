"""The operator ``sharp_compile::received_attention``. Importing this file needs Triton."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from .reference import received_attention as _anywhere
from .triton import received_attention as _on_gpu


@triton_op("sharp_compile::received_attention", mutates_args=())
def received_attention(query: Tensor, key: Tensor, weight: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """See `sharp_compile.kernels.received_attention.received_attention`."""
    # Inside, and not as a kernel of the dispatcher: AOTAutograd traces this body for the device of its tensors.
    if query.is_cuda:
        return _on_gpu(query, key, weight, mask, scale)
    return _anywhere(query, key, weight, mask, scale)

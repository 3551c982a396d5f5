"""How much attention each token receives from a few query rows.

``reference`` is the definition, ``aten`` plain PyTorch that Inductor fuses, ``triton`` what GPUs run and
``ops`` its operator; ``cost`` says what it should take.
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from . import aten

__all__ = ["attention_column_sums"]

_HAS_TRITON = find_spec("triton") is not None


def attention_column_sums(
    query: Tensor, key: Tensor, weight: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Return column sums of attention probabilities, weighted by row, mean over heads.

    ``out[b, s] = mean_h sum_t weight[b, t] * softmax_s(scale * query[b, h, t] @ key[b, h // G, s] + mask[b, h, t, s])``
    with G = H / Hkv. The matrix of probabilities is never stored on a GPU.

    Args:
        query: ``[B, H, T, D]``, the rows that attend: few (1 to 64), of any float type. After rotary embedding.
        key: ``[B, Hkv, S, D]``, of the same type; H is a multiple of Hkv (grouped-query attention).
        weight: ``[B, T]`` float32, what each row counts. One of 0 gives nothing, whatever its query holds.
        mask: broadcastable to ``[B, H, T, S]``. Boolean: True where a row sees a key. Floating point: added
            to the logits; minus infinity, or the lowest half of what the type can hold, hides a key. None:
            every row sees every key.
        scale: multiplies the products; None for ``D ** -0.5``.

    Returns:
        ``[B, S]`` float32. A row that sees nothing gives nothing to any key.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.is_cuda and _HAS_TRITON:
        from . import ops

        return ops.attention_column_sums(query, key, weight, mask, scale)
    return aten.attention_column_sums(query, key, weight, mask, scale)

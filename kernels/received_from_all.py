"""How much attention each token receives from all tokens, without the matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_column_sums import attention_column_sums
from .sinks import sinks_as_key

_CHUNK = 64


@torch.library.custom_op("sharp_compile::received_from_all", mutates_args=())
def received_from_all(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    scale: float | None,
    sinks: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Return column sums of a layer's attention probabilities, weighted by row, mean over heads.

    As many products as half of the layer's attention. One operator that takes the rows in chunks, as many as
    ``attention_column_sums`` is made for: a graph of any length can't have a loop, and its memory is to grow with the
    length only.

    Args:
        query: ``[B, H, S, D]``, after rotary embedding.
        key: ``[B, Hkv, S, D]``, H a multiple of Hkv (grouped-query attention).
        weight: ``[B, S]`` float32, what each row counts.
        mask: boolean (True: may be seen) or additive, broadcastable to ``[B, H, S, S]``; None for causal attention.
        scale: multiplies the products; None for ``D ** -0.5``.
        sinks: one more logit of each query, which takes a share and gives nothing, ``[1 or B, 1 or H, 1, 1]``; None
            without.
        is_causal: whether ``mask`` says of keys alone what is hidden, ``[B, 1, 1, S]``, and a query sees none after it.

    Returns:
        ``[B, S]`` float32.
    """
    received = torch.zeros(weight.shape, device=weight.device)
    position = torch.arange(key.shape[2], device=key.device)
    for start in range(0, query.shape[2], _CHUNK):
        rows = slice(start, start + _CHUNK)
        in_order = (position <= position[rows, None])[None, None]
        if mask is None:
            visible = in_order
        elif is_causal:
            visible = mask & in_order
        else:
            visible = mask if mask.shape[-2] == 1 else mask[..., rows, :]
        keys, seen = (key, visible) if sinks is None else sinks_as_key(key, visible, sinks)
        given = attention_column_sums(query[:, :, rows], keys, weight[:, rows], seen, scale)
        received += given[:, : key.shape[2]]
    return received


@received_from_all.register_fake
def _(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    scale: float | None,
    sinks: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    return torch.empty_like(weight)

"""What `generate` of transformers needs to decode on a pruned cache.

Behind the cut a cache holds fewer positions than before it. transformers builds one attention mask for all
layers, as wide as the cache of the first layer, which pruning leaves whole. A later layer has fewer keys
than the mask has columns; that is an error in every attention function.

The columns that belong to its keys are the last ones. A row keeps all of its text, and drops padding before
visual tokens: so either it dropped padding only, and what it kept is the tail of the row, or it dropped all
padding, and every column but those of padding is the same (visible to all that follows).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def install() -> None:
    """Lets every attention function of transformers take a mask that is wider than its keys.

    Calls whose mask fits are not changed.
    """
    from transformers.modeling_utils import AttentionInterface

    original = AttentionInterface.get_interface

    def get_interface(
        self: AttentionInterface, attn_implementation: str, default: Callable[..., Any]
    ) -> Callable[..., Any]:
        return with_mask_cut_to_keys(original(self, attn_implementation, default))

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]


def with_mask_cut_to_keys(attention: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function ``(module, query, key, value, attention_mask, ...)`` that accepts wider masks."""

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
        is_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4
        if is_mask and attention_mask.shape[-1] > key.shape[-2]:
            attention_mask = attention_mask[..., -key.shape[-2] :]
        elif isinstance(attention_mask, BlockMask) and attention_mask.shape[-1] > key.shape[-2]:
            attention_mask = _last_columns(attention_mask, key.shape[-2])
        return attention(module, query, key, value, attention_mask, *args, **kwargs)

    return attend


def _last_columns(mask: BlockMask, columns: int) -> BlockMask:
    """The block mask of the last `columns` keys of `mask` ``[B, 1, Q, K]``."""
    rows, heads, queries, keys = mask.shape
    first = keys - columns
    return create_block_mask(
        lambda b, h, q, k: mask.mask_mod(b, h, q, k + first), rows, heads, queries, columns, mask.kv_indices.device
    )

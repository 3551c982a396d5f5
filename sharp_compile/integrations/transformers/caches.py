"""Caches of transformers whose later layers hold fewer positions than the first.

transformers makes one mask for all layers of a kind, as wide as the cache of the first of them. Where that layer is
behind the cut it has lost positions; the mask is still to be made for all positions that were seen, of which
each layer takes the last columns (`masks`).
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Has masks be made for all positions that were seen, and a static cache that was cut be reset to full length."""
    from transformers import cache_utils, masking_utils

    preprocess = masking_utils._preprocess_mask_arguments

    def preprocess_for_all_seen(
        config: Any, embeddings: Any, mask: Any, cache: Any, positions: Any, layer: Any, *others: Any, **more: Any
    ) -> tuple[Any, ...]:
        result = preprocess(config, embeddings, mask, cache, positions, layer, *others, **more)
        done, mask, packed, queries, keys, query_offset, key_offset = result
        if done or not isinstance(cache, cache_utils.Cache) or layer is None or layer >= len(cache.layers):
            return result
        lost = _lost(cache, cache.layers[layer], query_offset)
        if isinstance(query_offset, int):
            keys = keys + lost
        return done, mask, packed, queries, keys, query_offset + lost, key_offset

    masking_utils._preprocess_mask_arguments = preprocess_for_all_seen

    reset = cache_utils.StaticLayer.reset

    def reset_to_full_length(self: Any) -> None:
        reset(self)
        if self.is_initialized and self.keys.shape[-2] != self.max_cache_len:
            # The next prefill makes the buffers anew.
            self.is_initialized = False

    cache_utils.StaticLayer.reset = reset_to_full_length  # type: ignore[method-assign]


def _lost(cache: Any, layer: Any, seen_by_layer: Any) -> int:
    """How many positions fewer than were seen a layer of a cache holds, or has room for."""
    from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer

    # One with a sliding window counts what it was given apart from what it holds.
    if not isinstance(layer, CacheLayerMixin) or not layer.is_initialized or layer.is_sliding:
        return 0
    if isinstance(layer, StaticLayer):
        return layer.max_cache_len - layer.keys.shape[-2]
    if isinstance(layer, DynamicLayer) and isinstance(seen_by_layer, int):
        seen = cache.get_seq_length()
        return seen - seen_by_layer if isinstance(seen, int) else 0
    return 0

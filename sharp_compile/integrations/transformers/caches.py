"""Caches of transformers whose later layers hold fewer positions than the first.

transformers makes one mask for all layers of a kind, as wide as the cache of the first of them. Where that layer is
behind the cut it has lost positions; the mask is still to be made for all positions that were seen, of which
each layer takes the last columns (`masks`).
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def install() -> None:
    """Has masks be made for all positions that were seen, and a static cache that was cut be reset to full length."""
    from transformers.cache_utils import Cache, StaticLayer

    mask_sizes, reset = Cache.get_mask_sizes, Cache.reset

    def mask_sizes_for_all_seen(self: Any, new: Any, layer_idx: int) -> tuple[int, int]:
        length, offset = mask_sizes(self, new, layer_idx)
        # A static layer says how long it was made, whatever it is now.
        if layer_idx < len(self.layers) and not isinstance(self.layers[layer_idx], StaticLayer):
            length = length + _lost(self, layer_idx)
        return length, offset

    def reset_to_full_length(self: Any) -> None:
        static = [layer for layer in self.layers if isinstance(layer, StaticLayer) and layer.is_initialized]
        was_cut = any(cast(Tensor, layer.keys).shape[-2] != layer.max_cache_len for layer in static)
        reset(self)
        for layer in static if was_cut else ():
            # The next prefill makes all buffers anew, as the first did.
            layer.is_initialized = False

    patched: Any = Cache  # mypy: methods are replaced
    patched.get_mask_sizes = mask_sizes_for_all_seen
    patched.reset = reset_to_full_length
    # Versions without this method take queries to be behind what the first layer holds, which is whole.
    if (query_offset := getattr(Cache, "get_query_offset", None)) is not None:

        def query_offset_for_all_seen(self: Any, layer_idx: int = 0) -> int:
            return query_offset(self, layer_idx) + _lost(self, layer_idx)

        patched.get_query_offset = query_offset_for_all_seen


def _lost(cache: Any, place: int) -> int:
    """How many positions fewer than were seen a layer of a cache holds, or has room for, between two calls.

    During a call the layers that ran already hold its positions too, and the others not yet.
    """
    from transformers.cache_utils import DynamicLayer, StaticLayer

    layer = cache.layers[place] if place < len(cache.layers) else None
    # One with a sliding window counts what it was given apart from what it holds.
    if not isinstance(layer, StaticLayer | DynamicLayer) or not layer.is_initialized or layer.is_sliding:
        return 0
    if isinstance(layer, StaticLayer):
        assert layer.keys is not None
        return layer.max_cache_len - layer.keys.shape[-2]
    return cache.get_seq_length() - layer.get_seq_length()

"""Caches of transformers whose later layers hold fewer positions than the first.

transformers makes one mask for all layers of a kind, as wide as the cache of the first of them. Where that layer is
behind the cut it has lost positions; the mask is still to be made for all positions that were seen, of which
each layer takes the last columns (`masks`).
"""

from __future__ import annotations

import inspect
from typing import Any, cast

from torch import Tensor


def install() -> None:
    """Has masks be made for all positions that were seen, and a static cache that was cut be reset to full length."""
    from transformers import masking_utils
    from transformers.cache_utils import Cache, StaticLayer

    # Not the methods of the cache that this asks: some models ask them in the middle of a call as well.
    preprocess, reset = masking_utils._preprocess_mask_arguments, Cache.reset
    names = list(inspect.signature(preprocess).parameters)
    named = "cache" if "cache" in names else "past_key_values"  # transformers 5.24 renamed it
    # Before 5.14 queries were behind what the first layer holds, which is all that was seen.
    is_offset_of_layer = hasattr(Cache, "get_query_offset")

    def preprocess_for_all_seen(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = preprocess(*args, **kwargs)
        given = dict(zip(names, args, strict=False)) | kwargs
        cache, layer = given[named], given["layer_idx"]
        if found[0] or layer is None or not isinstance(cache, Cache):
            return found
        lost = _lost(cache, layer)
        told = list(found)
        # Last are the number of keys, the offset of queries (from 5.5 on) and that of keys.
        keys = -3 if len(told) == 7 else -2
        # A static layer says how long it was made, whatever it is now.
        if layer >= len(cache.layers) or not isinstance(cache.layers[layer], StaticLayer):
            told[keys] = told[keys] + lost
        if is_offset_of_layer:
            told[-2] = told[-2] + lost
        return tuple(told)

    def reset_to_full_length(self: Any) -> None:
        static = [layer for layer in self.layers if isinstance(layer, StaticLayer) and layer.is_initialized]
        was_cut = any(cast(Tensor, layer.keys).shape[-2] != layer.max_cache_len for layer in static)
        reset(self)
        for layer in static if was_cut else ():
            # The next prefill makes all buffers anew, as the first did.
            layer.is_initialized = False

    masking_utils._preprocess_mask_arguments = preprocess_for_all_seen
    Cache.reset = reset_to_full_length  # type: ignore[method-assign]


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

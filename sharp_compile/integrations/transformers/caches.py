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
    from transformers import masking_utils
    from transformers.cache_utils import Cache, StaticLayer

    # Not the methods of the cache that this asks: some models ask them in the middle of a call as well.
    preprocess, reset = masking_utils._preprocess_mask_arguments, Cache.reset

    def preprocess_for_all_seen(
        config: Any,
        inputs_embeds: Any,
        attention_mask: Any,
        past_key_values: Any,
        position_ids: Any,
        layer_idx: int | None,
        encoder_hidden_states: Any = None,
    ) -> tuple[Any, ...]:
        found: tuple[Any, ...] = preprocess(
            config, inputs_embeds, attention_mask, past_key_values, position_ids, layer_idx, encoder_hidden_states
        )
        done, mask, packed, queries, keys, query_offset, key_offset = found
        if done or layer_idx is None or not isinstance(past_key_values, Cache):
            return found
        lost = _lost(past_key_values, layer_idx)
        # A static layer says how long it was made, whatever it is now.
        if layer_idx >= len(past_key_values.layers) or not isinstance(past_key_values.layers[layer_idx], StaticLayer):
            keys = keys + lost
        return done, mask, packed, queries, keys, query_offset + lost, key_offset

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

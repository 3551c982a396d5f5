"""The positions of the sequence that each layer of a cache holds.

After a cut a layer holds fewer positions than the ones before it. Which ones lives with the layer, for each row and in
order: the positions that the pruned prefill kept, and how many it had seen. All that came later follows without a gap.
So the positions of a layer's keys are known in every later call, compiled or not, wherever padding is::

    kept [B, N], seen, seen + 1, seen + 2, ...

Masks (``masks``), crops and reordering are derived from them. Stock code runs for a cache that no pruned model filled:
each function here asks ``is_tracked`` first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor

from ... import patches
from ...passes.held_positions import HELD_POSITIONS
from ..tracing import traces_for_sharp

# Attributes of a cache, and of its layers.
TRACKED = "sharp_tracked"
_KEPT, _SEEN, _RAGGED = "sharp_kept", "sharp_seen", "sharp_ragged"


def is_tracked(cache: Any) -> bool:
    """Return whether the layers of a cache may know which positions they hold."""
    return getattr(cache, TRACKED, False)


def kept_in(layer: Any) -> Tensor | None:
    """Return the kept positions ``[B, N]`` int64 of a layer, negative where a row holds none; None if it holds all."""
    kept: Tensor | None = getattr(layer, _KEPT, None)
    return None if kept is None or kept.shape[0] == 0 else kept


def dropped_in(layer: Any) -> int:
    """Return how many positions fewer than were seen a layer holds."""
    kept = kept_in(layer)
    return 0 if kept is None else getattr(layer, _SEEN) - kept.shape[1]


def track(cache: Any, kept: Mapping[int, Tensor], seen: int | SymInt) -> None:
    """Tell a cache that some of its layers, by number, hold the positions ``kept`` ``[B, N]`` of ``seen`` ones."""
    setattr(cache, TRACKED, True)
    for number, layer in enumerate(cache.layers):
        vars(layer).pop(_KEPT, None)
        if number in kept:
            setattr(layer, _KEPT, kept[number])
            setattr(layer, _SEEN, seen)


def is_ragged(layer: Any) -> bool:
    """Return whether rows of a layer hold different numbers of positions."""
    return getattr(layer, _RAGGED, False)


def key_positions(layer: Any, queries: int, is_updated: bool) -> Tensor:
    """Return the positions of the keys that attention sees when a layer, which lacks some, is given new ones.

    Args:
        layer: A layer of a cache, of which ``kept_in`` is not None.
        queries: The number of new positions.
        is_updated: Whether the layer holds the new ones already.

    Returns:
        ``[B, K]`` int64, ascending in each row; negative where a row has no key.
    """
    from transformers.cache_utils import StaticLayer

    kept, seen = kept_in(layer), getattr(layer, _SEEN)
    assert kept is not None
    size = layer.keys.shape[-2] if isinstance(layer, StaticLayer) and layer.keys is not None else None
    if size is not None and not layer.is_sliding:
        # Slots that are not filled yet are keys too.
        total = keys = size
    else:
        held = kept.shape[1] + _seen_now(layer) - seen - (queries if is_updated else 0)
        total = keys = held + queries
        if size is not None and total <= size:
            total = keys = size
        elif size is not None:
            # A full window moves on, by all but one of its slots; one that fills up now holds all.
            keys = size - 1 + queries if held >= size else total
        elif layer.is_sliding:
            keys = min(held, layer.sliding_window - 1) + queries
    later = torch.arange(seen, seen + total - kept.shape[1], device=kept.device)
    return torch.cat([kept, later.expand(kept.shape[0], -1)], 1)[:, total - keys :]


def first_position(layer: Any, queries: int, is_updated: bool) -> int:
    """Return the position of the first column of the mask that transformers makes for layers of this kind."""
    if not layer.is_sliding:
        return 0
    window = getattr(layer, "sliding_window", None) or layer.max_cache_len
    return max(_seen_now(layer) - (queries if is_updated else 0) - window + 1, 0)


def install() -> None:
    """Have caches know what a pruned model leaves in them, and keep to it."""
    from transformers.cache_utils import Cache

    for name, change in {
        "update": _noting_positions,
        "get_seq_length": _counting_what_was_seen,
        "reset": _resetting,
        "crop": _cropping,
        "reorder_cache": _choosing_rows(lambda kept, index: kept.index_select(0, index.to(kept.device))),
        "batch_repeat_interleave": _choosing_rows(lambda kept, repeats: kept.repeat_interleave(repeats, dim=0)),
        "batch_select_indices": _choosing_rows(lambda kept, indices: kept[indices]),
    }.items():
        patches.replace(
            Cache,
            name,
            functools.partial(_wrapped, change),
            versions=patches.TRANSFORMERS,
            why="a layer after a cut holds fewer positions than were seen, and has to know which",
            acts="prefills that are traced for this backend, and caches that a pruned model filled",
        )


def _wrapped(change: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(method)(change(method))


def _noting_positions(update: Callable[..., Any]) -> Callable[..., Any]:
    """``Cache.update``: an empty layer asks for the positions of its keys, where that is traced for this backend.

    A sliding layer of a static cache counts what it holds, to know when it is full, and what was seen, for masks, by
    one number: it is given the first while it is updated.
    """

    def updating(self: Any, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() and traces_for_sharp():
            is_new = layer_idx >= len(self.layers) or _is_empty(self.layers[layer_idx])
            if is_new:
                result = update(self, key_states, value_states, layer_idx, *args, **kwargs)
                layer = self.layers[layer_idx]
                moves = getattr(layer, "is_sliding", False)
                setattr(layer, _KEPT, HELD_POSITIONS(key_states, value_states, moves, _own_kind(layer)))
                setattr(layer, _SEEN, key_states.shape[-2])
                setattr(self, TRACKED, True)
                return result
        if not is_tracked(self):
            return update(self, key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        dropped = dropped_in(layer) if hasattr(layer, "cumulative_length_int") else 0
        if dropped:
            layer.cumulative_length_int = layer.cumulative_length_int - dropped
        result = update(self, key_states, value_states, layer_idx, *args, **kwargs)
        if dropped:
            layer.cumulative_length_int = layer.cumulative_length_int + dropped
        return result

    return updating


def _counting_what_was_seen(get_seq_length: Callable[..., Any]) -> Callable[..., Any]:
    """``Cache.get_seq_length``: models count the positions of new tokens from it, so what a layer lost counts too."""
    from transformers.cache_utils import CacheLayerMixin

    def counting(self: Any, layer_idx: int = 0) -> Any:
        length = get_seq_length(self, layer_idx)
        if not is_tracked(self) or layer_idx >= len(self.layers):
            return length
        # Asked of layer 0, a cache whose first layers are recurrent answers for the first that has keys.
        layer: Any = next(each for each in self.layers[layer_idx:] if isinstance(each, CacheLayerMixin))
        # A layer with a window counts what was seen apart from what it holds.
        return length if layer.is_sliding else length + dropped_in(layer)

    return counting


def _resetting(reset: Callable[..., Any]) -> Callable[..., Any]:
    """``Cache.reset``: a layer holds nothing afterwards, and a static one that was cut gets its full length back."""

    def resetting(self: Any) -> None:
        reset(self)
        if not is_tracked(self):
            return
        from transformers.cache_utils import StaticLayer

        for layer in self.layers:
            if isinstance(layer, StaticLayer):
                # The next prefill makes all buffers anew, as the first did.
                layer.is_initialized = False
            for name in (_KEPT, _SEEN, _RAGGED):
                vars(layer).pop(name, None)

    return resetting


def _cropping(crop: Callable[..., Any]) -> Callable[..., Any]:
    """``Cache.crop``: a layer holds what it held of the positions that are left."""
    from transformers import cache_utils

    def cropping(self: Any, tokens_to_remove: int) -> None:
        if not is_tracked(self):
            return crop(self, tokens_to_remove)
        for layer in self.layers:
            _check_croppable(layer, self.layers, tokens_to_remove)
        for layer in self.layers:
            if kept_in(layer) is None:
                layer.crop(tokens_to_remove)
            else:
                _crop(layer, _to_remove(layer, tokens_to_remove))
                if hasattr(layer, "conv_states"):
                    cache_utils.LinearAttentionCacheLayerMixin.crop(layer, tokens_to_remove)
        return None

    return cropping


def _to_remove(layer: Any, tokens_to_remove: int) -> int:
    # Older versions take the number of positions that are left, too; newer ones refuse it at the first layer.
    return _seen_now(layer) - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove


def _check_croppable(layer: Any, layers: list[Any], tokens_to_remove: int) -> None:
    """Refuse a crop among the positions that were pruned where a layer does not hold them one by one."""
    if kept_in(layer) is None or _seen_now(layer) - _to_remove(layer, tokens_to_remove) >= getattr(layer, _SEEN):
        return
    if hasattr(layer, "_quantized_keys") or any(hasattr(each, "conv_states") for each in layers):
        raise RuntimeError(
            "a pruned cache with quantized keys or with states of convolutions can't be cropped to a point before the "
            f"end of its prompt, position {getattr(layer, _SEEN)}: call the model on the shorter prompt"
        )


def _crop(layer: Any, remove: int) -> None:
    kept, seen, now = kept_in(layer), getattr(layer, _SEEN), _seen_now(layer)
    assert kept is not None
    left = max(now - remove, 0)
    window = layer.sliding_window if layer.is_sliding else None
    if window is not None and now >= window and not layer.record_past:
        # What has left the window is gone: transformers says what to do.
        return layer.crop(-remove)
    # What is held begins here, in all that was kept and came later.
    first = kept.shape[1] + now - seen - layer.keys.shape[-2]
    if left < seen:
        # Rows may have kept different numbers of the positions that are left: the longest decides.
        is_left = (kept >= 0) & (kept < left)
        counts = is_left.sum(1)
        kept = kept.masked_fill(~is_left, -1)[:, : int(counts.max())]
        seen = left
        setattr(layer, _RAGGED, bool((counts != counts[0]).any()))
    total = kept.shape[1] + left - seen
    start = first if window is None else max(total - window + 1, first)
    layer.keys = layer.keys[..., start - first : max(total - first, 0), :]
    layer.values = layer.values[..., start - first : max(total - first, 0), :]
    setattr(layer, _KEPT, kept)
    setattr(layer, _SEEN, seen)
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = left
    return None


def _choosing_rows(of_kept: Callable[..., Tensor]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a method of ``Cache`` that chooses among the rows of all layers: the positions go with their rows."""

    def change(method: Callable[..., Any]) -> Callable[..., Any]:
        def choosing(self: Any, *args: Any, **kwargs: Any) -> None:
            method(self, *args, **kwargs)
            if not is_tracked(self):
                return
            for layer in self.layers:
                kept = kept_in(layer)
                if kept is not None:
                    setattr(layer, _KEPT, of_kept(kept, *args, *kwargs.values()))

        return choosing

    return change


def _own_kind(layer: Any) -> str:
    """Return the class of a layer that keeps tokens in a way that is not transformers'; nothing for others."""
    # Of its method, not of its class: Dynamo would guard on the class, which it can't write down.
    return "" if layer.update.__module__ == "transformers.cache_utils" else type(layer).__name__


def _seen_now(layer: Any) -> Any:
    """Return how many positions a layer has seen, whatever it holds of them."""
    for name in ("cumulative_length_int", "cumulative_length"):
        count = getattr(layer, name, None)
        # A symbol, in a program, is no int.
        if count is not None and not isinstance(count, Tensor):
            return count
    kept = kept_in(layer)
    assert kept is not None
    return layer.keys.shape[-2] - kept.shape[1] + getattr(layer, _SEEN)


def _is_empty(layer: Any) -> bool:
    return not layer.is_initialized or layer.keys is None or layer.keys.numel() == 0

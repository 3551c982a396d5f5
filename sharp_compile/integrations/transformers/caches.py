"""Masks of transformers for caches whose layers hold fewer positions than were seen.

transformers makes one mask for all layers of a kind, as wide as the first of them says. Where that layer is after a
cut it holds fewer positions; the mask is still to be made for all that were seen, of which each layer takes the columns
of its own (``masks``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ... import patches
from . import positions


def install() -> None:
    """Have masks be made for all positions that were seen, where a pruned model filled the cache."""
    from transformers import masking_utils

    patches.replace(
        masking_utils,
        "_preprocess_mask_arguments",
        _for_all_seen,
        versions=patches.TRANSFORMERS,
        why="masks would be as wide as the first layer of their kind, which may hold fewer positions than others",
        acts="caches that a pruned model filled",
    )


def _for_all_seen(preprocess: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    from transformers.cache_utils import StaticLayer

    names = list(inspect.signature(preprocess).parameters)
    named = "cache" if "cache" in names else "past_key_values"  # transformers 5.24 renamed it

    @functools.wraps(preprocess)
    def preprocess_for_all_seen(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        found = preprocess(*args, **kwargs)
        given = dict(zip(names, args, strict=False)) | kwargs
        cache, number = given[named], given["layer_idx"]
        if found[0] or number is None or not positions.is_tracked(cache) or number >= len(cache.layers):
            return found
        layer = cache.layers[number]
        # A layer with a window counts what was seen apart from what it holds; a static one says how long it was made.
        is_told = getattr(layer, "is_sliding", True) or isinstance(layer, StaticLayer)
        dropped = 0 if is_told else positions.dropped_in(layer)
        if not dropped:
            return found
        told = list(found)
        # Last are the number of keys, the offset of queries (from 5.5 on), which is what was seen, and that of keys.
        keys = -3 if len(told) == 7 else -2
        told[keys] = told[keys] + dropped
        return tuple(told)

    return preprocess_for_all_seen

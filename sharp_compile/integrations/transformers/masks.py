"""Attention masks of transformers, fitted to the positions that a layer of a pruned cache holds.

transformers makes one mask for all layers of a kind, for all positions that were seen, or those of the last window. A
layer after a cut has keys of fewer positions, and knows of which (``positions``): the columns of the mask that belong
to them are taken in front of its attention. Where transformers makes no mask, since every key that a stock cache holds
is visible, one is made only if this layer holds keys that such a cache would not hold any more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from ... import patches
from . import positions

# What attentions call the cache of all layers.
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")


def install_in(module: ModuleType) -> bool:
    """Let the attentions of a model's module take masks for the positions that a pruned cache holds.

    An attention is a module that takes a mask and adds to a cache, by ``Cache.update`` in every version of transformers
    that is served; its code is asked for that name. A decoder layer takes the same arguments, and a graph may show one
    without the attention inside of it. With any other cache an attention runs as it was.

    Returns:
        Whether a class was changed.
    """
    changed = False
    for cls in list(vars(module).values()):
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__:
            changed |= _fit_masks_of(cls)
    return changed


def _fit_masks_of(cls: Any) -> bool:
    forward = vars(cls).get("forward")
    if forward is None or hasattr(forward, "fits_masks"):
        return False
    names = list(inspect.signature(forward).parameters)[1:]
    caches = [name for name in names if name in _CACHES]
    code = getattr(inspect.unwrap(forward), "__code__", None)
    if not caches or "attention_mask" not in names or code is None or "update" not in code.co_names:
        return False

    patches.replace(
        cls,
        "forward",
        functools.partial(_fitting, names=names, cache_name=caches[0]),
        versions=patches.TRANSFORMERS,
        why="a mask is made for all layers of a kind; one after a cut has keys of fewer positions",
        acts="caches that a pruned model filled",
    )
    return True


def _fitting(forward: Callable[..., Any], names: list[str], cache_name: str) -> Callable[..., Any]:
    @functools.wraps(forward)
    def fitting(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        cache = given.get(cache_name)
        if cache is None or not positions.is_tracked(cache):
            return forward(self, *args, **kwargs)
        queries = given[names[0]].shape[-2]
        given["attention_mask"] = _fitted(given.get("attention_mask"), cache, self, queries)
        return forward(self, **given)

    fitting.fits_masks = True  # type: ignore[attr-defined]
    return fitting


def _fitted(mask: Any, cache: Any, attention: Any, queries: int) -> Any:
    """Return a mask for the keys that an attention sees, given the one for all positions."""
    layer, is_updated = _layer_of(cache, attention)
    if layer is None or positions.dropped_in(layer) == 0:
        return mask
    first = positions.first_position(layer, queries, is_updated)
    if mask is None and first == 0 and not positions.is_ragged(layer):
        return None
    if mask is not None and len(mask.shape) != 4:
        return mask
    columns = positions.key_positions(layer, queries, is_updated) - first
    if isinstance(mask, BlockMask):
        return _block_columns(mask, columns)
    return _take_columns(mask, columns, queries)


def _layer_of(cache: Any, attention: Any) -> tuple[Any, bool]:
    """Return the layer of a cache from which an attention has its keys, and whether it holds the new ones already.

    A layer that holds none itself has those of an earlier layer with the same kind of window, which has run before.
    """
    number = attention.layer_idx
    if number < len(cache.layers) and getattr(cache.layers[number], "keys", None) is not None:
        return cache.layers[number], False
    has_window = getattr(attention, "sliding_window", None) is not None
    for layer in reversed(cache.layers[:number]):
        if getattr(layer, "keys", None) is not None and layer.is_sliding == has_window:
            return layer, True
    return None, False


def _take_columns(mask: Tensor | None, columns: Tensor, queries: int) -> Tensor:
    """Columns ``[B, K]`` of a mask ``[1 or B, 1 or H, Q, T]``, boolean or additive; those outside of it are hidden."""
    is_hidden = columns < 0
    if mask is None:
        return ~is_hidden[:, None, None].expand(-1, -1, queries, -1)
    width = mask.shape[-1]
    is_hidden = is_hidden | (columns >= width)
    places = columns.clamp(min=0).clamp(max=width - 1)[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
    taken = mask.expand(columns.shape[0], -1, -1, -1).gather(-1, places)
    if mask.dtype == torch.bool:
        return taken & ~is_hidden[:, None, None]
    return taken.masked_fill(is_hidden[:, None, None], torch.finfo(mask.dtype).min)


def _block_columns(mask: BlockMask, columns: Tensor) -> BlockMask:
    _, heads, queries, width = mask.shape
    is_there = (columns >= 0) & (columns < width)
    places = columns.clamp(min=0).clamp(max=width - 1)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return is_there[b, k] & mask.mask_mod(b, h, q, places[b, k])

    return create_block_mask(sees, columns.shape[0], heads, queries, columns.shape[1], mask.kv_indices.device)

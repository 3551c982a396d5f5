"""What `generate` of transformers needs to decode on a pruned cache.

Behind the cut a cache holds fewer positions than before it. transformers builds one attention mask for all
layers, as wide as the cache of the first layer, which pruning leaves whole. A later layer has fewer keys
than the mask has columns; that is an error in every attention function.

The columns that belong to its keys are the last ones. A row keeps all of its text, and drops padding before
visual tokens: so either it dropped padding only, and what it kept is the tail of the row, or it dropped all
padding, and every column but those of padding is the same (visible to all that follows).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# The method by which models get attention functions of any kind, and the name of their eager one where they have none.
_LOOKUP, _EAGER = "get_interface", "eager_attention_forward"

# What attentions call the cache of all layers.
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")


def install() -> None:
    """Lets every attention function of transformers take a mask that is wider than its keys.

    Calls whose mask fits are not changed.
    """
    from transformers.modeling_utils import AttentionInterface

    name = _LOOKUP if hasattr(AttentionInterface, _LOOKUP) else "__getitem__"
    original = getattr(AttentionInterface, name)

    def get(self: AttentionInterface, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return with_mask_cut_to_keys(original(self, *args, **kwargs))

    setattr(AttentionInterface, name, get)


def install_in(module: ModuleType) -> None:
    """Does the same for what attends in a model's module past that table.

    That is its eager function before transformers 5.1, and attentions that call no function: some of these cut a wide
    mask by themselves, to its first columns.
    """
    from transformers.modeling_utils import AttentionInterface

    eager = vars(module).get(_EAGER)
    if eager is not None and not hasattr(AttentionInterface, _LOOKUP) and not hasattr(eager, "__wrapped__"):
        setattr(module, _EAGER, functools.update_wrapper(with_mask_cut_to_keys(eager), eager))
    for cls in list(vars(module).values()):
        if inspect.isclass(cls) and cls.__module__ == module.__name__ and _attends_by_itself(cls):
            _cut_before(cls)


def _attends_by_itself(cls: type) -> bool:
    """Whether the `forward` of a class adds to a cache and looks up no attention function."""
    forward = vars(cls).get("forward")
    code = getattr(inspect.unwrap(forward), "__code__", None) if forward is not None else None
    return code is not None and "update" in code.co_names and "ALL_ATTENTION_FUNCTIONS" not in code.co_names


def _cut_before(cls: Any) -> None:
    """Has the mask be cut in front of an attention, if it takes a mask and a cache and is not changed yet."""
    forward, names = cls.forward, list(inspect.signature(cls.forward).parameters)[1:]
    caches = [name for name in names if name in _CACHES]
    if not caches or "attention_mask" not in names or forward.__code__.co_name == "cutting":
        return

    @functools.wraps(forward)
    def cutting(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        mask, hidden = given.get("attention_mask"), given.get(names[0])
        if isinstance(mask, torch.Tensor) and mask.ndim == 4 and isinstance(hidden, torch.Tensor):
            keys = _keys_after(given.get(caches[0]), getattr(self, "layer_idx", None), hidden.shape[-2])
            if keys is not None and mask.shape[-1] > keys:
                given["attention_mask"] = mask[..., -keys:]
        return forward(self, **given)

    cls.forward = cutting


def _keys_after(cache: Any, layer_idx: int | None, queries: int) -> int | None:
    """How many keys a layer of a cache will give to an attention of new queries, None where that is not known."""
    from transformers.cache_utils import Cache, StaticLayer

    # A cache of an encoder and a decoder holds two others, and no layers.
    if not isinstance(cache, Cache) or layer_idx is None or layer_idx >= len(getattr(cache, "layers", ())):
        return None
    layer: Any = cache.layers[layer_idx]
    if getattr(layer, "keys", None) is None or layer.keys.numel() == 0:
        return None
    held: int = layer.keys.shape[-2]
    if isinstance(layer, StaticLayer):
        return None if layer.is_sliding else held
    return held + queries


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

"""Stock models, pruned by hand: what a compiled model is compared with. Nothing of the passes is used here.

A layer behind the cut gets what it gets at the kept positions only, and its outputs are put back where they come from,
among NaNs, which nothing that is kept may use. So whatever a model does between its layers sees whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def pruned_by_hand(layers: Sequence[nn.Module], kept: Tensor, length: int) -> Iterator[None]:
    """Let decoder layers see a part of each prompt, and in decoding what is left of it in their caches.

    Args:
        layers: those after the cut, in their order.
        kept: ``[B, N]`` positions, ascending in each row.
        length: S of the prompts.
    """
    with ExitStack() as stack:
        for layer in layers:
            shorten = layer.register_forward_pre_hook(partial(_shorten, kept, length), with_kwargs=True)
            put_back = layer.register_forward_hook(partial(_put_back, kept, length))
            stack.callback(shorten.remove)
            stack.callback(put_back.remove)
        yield


def _shorten(
    kept: Tensor, length: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden, *others = args
    mask = kwargs.get("attention_mask")
    if hidden.shape[1] != length:  # a decoding step
        if mask is not None:
            later = torch.arange(length, mask.shape[-1], device=kept.device).expand(len(kept), -1)
            kwargs = kwargs | {"attention_mask": at(mask, -1, torch.cat([kept, later], 1))}
        return args, kwargs
    tables = tuple(at(table, -2, kept) for table in kwargs["position_embeddings"])
    shorter = {"position_embeddings": tables, "position_ids": at(kwargs.get("position_ids"), -1, kept)}
    if mask is not None:
        shorter["attention_mask"] = at(at(mask, -2, kept), -1, kept)
    return (at(hidden, 1, kept), *others), kwargs | shorter


def _put_back(kept: Tensor, length: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    hidden, *others = output if isinstance(output, tuple) else (output,)
    if hidden.shape[1] != kept.shape[1]:
        return output
    whole = hidden.new_full((len(hidden), length, hidden.shape[2]), torch.nan)
    whole = whole.scatter(1, kept[..., None].expand_as(hidden), hidden)
    return (whole, *others) if isinstance(output, tuple) else whole


def at(tensor: Any, axis: int, positions: Tensor) -> Any:
    """Return ``tensor`` ``[B or 1, ...]`` at the positions ``[B, N]`` of an axis; None as it is."""
    if tensor is None:
        return None
    rows = tensor.expand(len(positions), *tensor.shape[1:])
    return torch.stack([row.index_select(axis % tensor.dim() - 1, p) for row, p in zip(rows, positions, strict=True)])

"""Puts the selection into a graph: from the state of the scoring layer to the kept positions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Node

from ..kernels.attention_rows import may_see
from ..kernels.keep import keep_positions
from ..selectors import Context, Rule
from .attention import Attention
from .emit import Emitter
from .errors import CannotPrune
from .nodes import example_tensor
from .rotation import Rotation, rotation_module
from .sizes import expression


@dataclass(frozen=True)
class Tokens:
    """The kinds of the tokens of one stage, as nodes ``[B, S]``.

    ``is_visual`` and ``is_padding`` are bool; ``frame`` is int64, -1 where a token is not visual.
    """

    is_visual: Node
    is_padding: Node
    frame: Node


def padding_mask(
    attention: Attention, length: int | SymInt, capacities: Collection[int | SymInt] = ()
) -> Callable[..., Tensor]:
    """A function that finds padding ``[B, S]`` from ``(is_visual, mask)``; `mask` is absent if there is none.

    A position is padding if its own query may not see it: every causal, sliding or two-way mask lets a
    token see itself, unless it is padding. The mask may have more columns than S: one of `capacities`.

    Raises:
        CannotPrune: where the mask has no row for each query.
    """
    mask = None if attention.mask is None else example_tensor(attention.mask)
    if mask is None:
        return torch.zeros_like
    rows, columns = (expression(size) for size in mask.shape[-2:])
    widths = [expression(size) for size in (length, *capacities)]
    if mask.ndim != 4 or columns not in widths or rows not in (widths[0], 1):
        raise CannotPrune(
            f"the attention mask has shape {[str(size) for size in mask.shape]}, [B, 1, S, S] was expected with "
            f"S = {length}: a cache that holds tokens already, or a preallocated (static) one that was made before "
            "this call, or another kind of mask; start with an empty cache"
        )
    has_rows = rows == widths[0]

    def is_padding(is_visual: Tensor, mask: Tensor) -> Tensor:
        visible = may_see(mask)[:, 0]
        own = visible.diagonal(dim1=-2, dim2=-1) if has_rows else visible[:, 0, : is_visual.shape[1]]
        return ~own.expand_as(is_visual)

    return is_padding


def visual_mask(*masks: Tensor) -> Tensor:
    """Masks of injections, ``[B, S, 1 or C]`` bool each, as one ``[B, S]``."""
    whole = [mask[..., 0] if mask.shape[-1] == 1 or mask.stride(-1) == 0 else mask.any(-1) for mask in masks]
    for mask in whole[1:]:
        whole[0] = whole[0] | mask
    return whole[0]


def emit_selection(
    emit: Emitter,
    attention: Attention | None,
    hidden: Node,
    rotation: Rotation | None,
    tokens: Tokens,
    rule: Rule,
    kept: int | Node,
) -> tuple[Node, Node, Tokens]:
    """Adds the nodes that score the tokens of a layer and choose the kept ones.

    Args:
        emit: adds traced functions to the graph.
        attention: that of the scoring layer, as the graph has it now; None where the rule needs none.
        hidden: what enters the layer, ``[B, S, C]``.
        rotation: that of the layer's keys, None without attention.
        tokens: the kinds of the layer's tokens.
        rule: the selection rule.
        kept: how many tokens a row keeps, a number or the node of one.

    Returns:
        The node of the kept positions, ``[B, kept]`` int64 in the tokens of the layer; that of the scores,
        ``[B, S]`` float32, NaN where a token is not visual; and the kinds of the kept tokens.
    """
    rotate: Callable[..., Tensor] | None = None
    state: list[Any] = [None] * 5
    rotation_inputs: list[Node] = []
    if attention is not None and rotation is not None:
        rotate, rotation_inputs = rotation_module(rotation)
        state = [attention.query, attention.key, rotation.unrotated, attention.mask, attention.scale]

    def select(
        hidden: Tensor,
        is_visual: Tensor,
        is_padding: Tensor,
        frame: Tensor,
        kept: int,
        query: Tensor,
        key: Tensor,
        unrotated: Tensor,
        mask: Tensor | None,
        scale: float | None,
        *others: Any,
    ) -> tuple[Tensor, ...]:
        if mask is not None:
            # Columns behind the tokens are room in a cache.
            mask = mask[..., : is_visual.shape[1]]
        constants, rotation_inputs = others[: len(rule.constants)], others[len(rule.constants) :]
        with torch.no_grad():
            context = Context(
                query,
                key,
                unrotated,
                hidden,
                is_visual,
                is_padding,
                frame,
                scale,
                mask,
                kept,
                rotate=lambda keys: keys if rotate is None else rotate(keys, *rotation_inputs),
            )
            scores = _checked(rule.score(context, *constants), is_visual)
            positions = keep_positions(scores, is_visual, is_padding, kept)
            of_kept = (kind.gather(1, positions) for kind in (is_visual, is_padding, frame))
            return positions, scores.float().where(is_visual, float("nan")), *of_kept

    positions, scores, *kinds = emit(
        select,
        hidden,
        tokens.is_visual,
        tokens.is_padding,
        tokens.frame,
        kept,
        *state,
        *(emit.constant(value, like=hidden) for value in rule.constants),
        *rotation_inputs,
        results=5,
    )
    return positions, scores, Tokens(*kinds)


def _checked(scores: Any, is_visual: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != is_visual.shape:
        got = f"a tensor {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the selector must return a tensor [B, S] = {list(is_visual.shape)}, it returned {got}")
    return scores

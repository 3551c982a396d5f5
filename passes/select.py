"""Puts the selection into a graph: from the state of the scoring layer to the kept positions."""

from __future__ import annotations

from collections.abc import Callable
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


def padding_mask(attention: Attention, length: int | SymInt) -> Callable[..., Tensor]:
    """A function that finds padding ``[B, S]`` from ``(is_visual, mask)``; `mask` is absent if there is none.

    A position is padding if its own query may not see it: every causal, sliding or two-way mask lets a
    token see itself, unless it is padding.

    Raises:
        CannotPrune: where the mask has no row for each query.
    """
    mask = None if attention.mask is None else example_tensor(attention.mask)
    if mask is None:
        return torch.zeros_like
    rows, columns = (expression(size) for size in mask.shape[-2:])
    if mask.ndim != 4 or columns != expression(length) or rows not in (columns, 1):
        raise CannotPrune(
            f"the attention mask has shape {[str(size) for size in mask.shape]}, [B, 1, S, S] was expected with "
            f"S = {length}: a cache that is preallocated or holds tokens already, or another kind of mask"
        )
    has_rows = rows == columns

    def is_padding(is_visual: Tensor, mask: Tensor) -> Tensor:
        visible = may_see(mask)[:, 0]
        own = visible.diagonal(dim1=-2, dim2=-1) if has_rows else visible[:, 0]
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
    attention: Attention,
    hidden: Node,
    rotation: Rotation,
    tokens: Tokens,
    rule: Rule,
    kept: int | Node,
) -> tuple[Node, Node, Tokens]:
    """Adds the nodes that score the tokens of a layer and choose the kept ones.

    Args:
        emit: adds traced functions to the graph.
        attention: that of the scoring layer, as the graph has it now.
        hidden: what enters the layer, ``[B, S, C]``.
        rotation: that of the layer's keys.
        tokens: the kinds of the layer's tokens.
        rule: the selection rule.
        kept: how many tokens a row keeps, a number or the node of one.

    Returns:
        The node of the kept positions, ``[B, kept]`` int64 in the tokens of the layer; that of the scores,
        ``[B, S]`` float32, NaN where a token is not visual; and the kinds of the kept tokens.
    """
    rotate, rotation_inputs = rotation_module(rotation)
    mask, scale = attention.mask, attention.scale

    def select(
        query: Tensor,
        key: Tensor,
        unrotated: Tensor,
        hidden: Tensor,
        is_visual: Tensor,
        is_padding: Tensor,
        frame: Tensor,
        kept: int,
        mask: Tensor | None,
        scale: float | None,
        *others: Any,
    ) -> tuple[Tensor, ...]:
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
                rotate=lambda keys: rotate(keys, *rotation_inputs),
            )
            scores = _checked(rule.score(context, *constants), is_visual)
            positions = keep_positions(scores, is_visual, is_padding, kept)
            of_kept = (kind.gather(1, positions) for kind in (is_visual, is_padding, frame))
            return positions, scores.float().where(is_visual, float("nan")), *of_kept

    positions, scores, *kinds = emit(
        select,
        attention.query,
        attention.key,
        rotation.unrotated,
        hidden,
        tokens.is_visual,
        tokens.is_padding,
        tokens.frame,
        kept,
        mask,
        scale,
        *(emit.constant(value, like=attention.query) for value in rule.constants),
        *rotation_inputs,
        results=5,
    )
    return positions, scores, Tokens(*kinds)


def _checked(scores: Any, is_visual: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != is_visual.shape:
        got = f"a tensor {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the selector must return a tensor [B, S] = {list(is_visual.shape)}, it returned {got}")
    return scores

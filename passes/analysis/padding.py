"""Which tokens are padding, and of what kind the others are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

import torch
from torch import SymInt, Tensor

from ...kernels.attention_rows import to_bool_mask
from ...kernels.keep import leading
from ..errors import CannotPrune
from ..fx.nodes import example_tensor
from ..fx.sizes import expression
from .attention import Attention
from .attention_mask import MaskFormula


def padding_mask(
    attention: Attention,
    length: int | SymInt,
    padded_lengths: Collection[int | SymInt] = (),
    formula: MaskFormula | None = None,
) -> Callable[..., Tensor]:
    """Return a function that finds padding ``[B, S]`` from ``is_visual`` and what shows it.

    That are the tables of ``formula``; without one it is the mask, and nothing where there is none.

    A position is padding if its own query may not see it: every causal, sliding or two-way mask lets a
    token see itself, unless it is padding. The mask may have more columns than S: one of ``padded_lengths``.

    Raises:
        CannotPrune: where the mask has no row for each query.
    """
    mask = None if attention.mask is None else example_tensor(attention.mask)
    if mask is None:
        return torch.zeros_like
    rows, columns = (expression(size) for size in mask.shape[-2:])
    widths = [expression(size) for size in (length, *padded_lengths)]
    if mask.ndim != 4 or columns not in widths or rows not in (widths[0], 1):
        raise CannotPrune(
            f"the attention mask has shape {[str(size) for size in mask.shape]}, [B, 1, S, S] was expected with "
            f"S = {length}: a cache that holds tokens already, or a preallocated (static) one that was made before "
            "this call, or another kind of mask; start with an empty cache"
        )
    if formula is not None:
        return functools.partial(_hidden_from_itself, formula)
    has_rows = rows == widths[0]

    def is_padding(is_visual: Tensor, mask: Tensor) -> Tensor:
        visible = to_bool_mask(mask)[:, 0]
        own = visible.diagonal(dim1=-2, dim2=-1) if has_rows else visible[:, 0, : is_visual.shape[1]]
        return ~own.expand_as(is_visual)

    return is_padding


def _hidden_from_itself(formula: MaskFormula, is_visual: Tensor, *tables: Tensor) -> Tensor:
    positions = torch.arange(is_visual.shape[1], device=is_visual.device).expand_as(is_visual)
    return ~formula.sees_itself(positions, *tables)


def token_kinds(is_padding: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that makes the tensors of ``Tokens`` from ``is_visual``, ``frame`` and what shows padding.

    Args:
        is_padding: what ``padding_mask`` returns.
    """

    def kinds(is_visual: Tensor, frame: Tensor, *shown_by: Tensor) -> tuple[Tensor, ...]:
        padding = is_padding(is_visual, *shown_by)
        visual = is_visual & ~padding
        return visual, padding, leading(padding), frame.where(visual, -1), visual.sum(1)

    return kinds

"""The operators of ours in plain PyTorch, for programs that are to run where this package is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule

from ..kernels import mask_formula
from ..kernels.attention_column_sums import aten as column_sums
from ..kernels.multi_gather import reference as gather


def write_plain(module: GraphModule) -> None:
    """Write a graph's operators of ours as functions of plain PyTorch, which tracing goes into."""
    for node in module.graph.nodes:
        name = node.target.name() if isinstance(node.target, OpOverload) else node.target
        node.target = _PLAIN.get(name, node.target)
    module.recompile()


def causal_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """See ``kernels.causal_attention``: with a mask of S x S."""
    length = query.shape[2]
    place = torch.arange(length, device=query.device)
    mask = visible[:, None, None] & (place <= place[:, None])
    return _attention(query, key[:, :, :length], value[:, :, :length], mask, scale)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, *of_mask: Any) -> Tensor:
    """See ``kernels.masked_attention``: with a mask of all queries and keys."""
    rows, columns, of_query, of_key, formula, scale = of_mask
    length, shape = columns.shape[1], (rows.shape[0], 1, rows.shape[1], columns.shape[1])
    values = mask_formula.values_at(rows, columns, of_query, of_key)
    mask = mask_formula.evaluate(mask_formula.read(formula), values).expand(shape)
    return _attention(query, key[:, :, :length], value[:, :, :length], mask, scale)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    grouped = key.shape[1] != query.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=grouped)


def check_all(condition: Tensor, message: str | Callable[[], str] | None = None) -> None:
    """``torch._check_tensor_all`` without a number that depends on data, which not all exporters take."""
    text = message() if callable(message) else message
    torch._assert_async(condition.all(), text or "a check of the model's own failed")


def greedy_cosine_dedup(vectors: Tensor, order: Tensor, candidates: Tensor, budget: Tensor, threshold: float) -> Tensor:
    """See ``kernels.greedy_cosine_dedup``: all rows at once, in rounds, with S x S similarities.

    Each round decides all tokens that have no undecided near copy before them in the walk, which is at least the first.
    """
    taken = order[..., None].expand(-1, -1, vectors.shape[2])
    unit = torch.nn.functional.normalize(vectors.gather(1, taken).float(), dim=-1)
    before = (unit @ unit.transpose(1, 2) > threshold).tril(-1)
    place = torch.arange(order.shape[1], device=order.device)
    is_candidate = place < candidates[:, None]

    def undecided(open_: Tensor, keeps: Tensor) -> Tensor:
        return open_.any()

    def decide(open_: Tensor, keeps: Tensor) -> tuple[Tensor, Tensor]:
        first = open_ & ~(before & open_[:, None]).any(2)
        return open_ & ~first & ~(before & first[:, None]).any(2), keeps | first

    loop = torch._higher_order_ops.while_loop
    _, keeps = loop(undecided, decide, (is_candidate, torch.zeros_like(is_candidate)))
    # The walk ends with the last one that fits into the budget.
    kept_before = keeps.cumsum(1) - keeps.long()
    skips = is_candidate & ~keeps & (kept_before < budget[:, None])
    # Only candidates are distinct positions.
    return torch.zeros_like(order).scatter_add(1, order, skips.long()) > 0


def diagonal(values: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The main diagonal of the last two dimensions, by a gather: not all exporters take the operator."""
    if (offset, dim1 % values.ndim, dim2 % values.ndim) != (0, values.ndim - 2, values.ndim - 1):
        return torch.diagonal(values, offset, dim1, dim2)
    place = torch.arange(values.shape[-2], device=values.device)[:, None]
    return values.gather(-1, place.expand(*values.shape[:-1], 1)).squeeze(-1)


_PLAIN: dict[Any, Callable[..., Any]] = {
    torch._check_tensor_all: check_all,
    "aten::diagonal": diagonal,
    "sharp_compile::attention_column_sums": column_sums.attention_column_sums,
    "sharp_compile::causal_attention": causal_attention,
    "sharp_compile::masked_attention": masked_attention,
    "sharp_compile::greedy_cosine_dedup": greedy_cosine_dedup,
    "sharp_compile::multi_gather": gather.multi_gather,
}

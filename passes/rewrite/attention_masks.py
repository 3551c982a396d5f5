"""Has attentions see what their masks say, without the masks: no tensor of queries times keys is left.

A mask that is understood (``analysis.attention_mask``) is one of these, at the positions that a layer has by now:

* causal, and nothing else: the causal order of the fused attention itself;
* causal, and padding is hidden: ``kernels.causal_attention``. Kept tokens ascend, so theirs is the causal order too;
* anything else (a sliding window, blocks, the kept tokens of a layer that attend to all keys):
  ``kernels.masked_attention``, which makes the mask of a few queries at a time.

These operators give no gradients: where there may be some, a mask is made of the formula, at the positions of the
layer. A mask that is not understood stays a tensor of all pairs, which is gathered after a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ...kernels import causal_attention, mask_formula, masked_attention  # noqa: F401 (they register operators)
from ..analysis.attention import Attention, as_sdpa
from ..analysis.attention_mask import CAUSAL, MaskFormula
from ..context import PassContext
from ..fx.emit import Emitter
from ..fx.nodes import ancestors, flatten_args, writes_into_first
from ..token_dim.plan import Gather


def replace_masks(context: PassContext) -> int:
    """Rewrite the attentions of a decoder whose tokens are pruned already.

    Returns:
        How many of its layers read a mask of all pairs still.
    """
    writer = _Writer(context.emit, context.injection.embeddings)
    layers = [layer for layer in context.decoder.layers if layer is not None]
    unread: set[Node] = set()
    dense = 0
    for layer in layers:
        given = as_sdpa(layer.output) or {"attn_mask": layer.mask}
        mask = given.get("attn_mask")
        formula = _formula_of(context, layer, mask) if mask is not None and _may_be_replaced(context, layer) else None
        dense += mask is not None and formula is None
        if formula is not None:
            unread |= {each for each in (layer.mask, mask) if each is not None}
            writer.write(layer.output, given, formula, *_positions(context, layer))
    _erase_unused(context.graph, unread, context.plans)
    return dense


def _may_be_replaced(context: PassContext, layer: Attention) -> bool:
    """Return whether a layer's attention is a fused one that can be given something else than a mask."""
    given = as_sdpa(layer.output)
    if given is None or given.get("dropout_p") or layer.output in context.flex:
        return False
    # With gradients it is given a mask, which is as wide as the buffers of a preallocated cache are.
    return not (torch.is_grad_enabled() and context.slack.buffers)


def _formula_of(context: PassContext, layer: Attention, mask: Node) -> MaskFormula | None:
    """Return the formula of a layer's mask; None where the mask is not just what it was, at the layer's positions."""
    if layer.mask is None:
        # Made for the kept tokens of a hoisted layer, which is causal by itself.
        return CAUSAL
    plan = context.plans.get(layer.output)
    if plan is None or not plan.stage:
        return context.formula_of(mask)
    formula = context.formula_of(layer.mask)
    leaves = zip(flatten_args(layer.output), plan.rewrites, strict=True)
    axes = (2,) if _is_hoisted(context, layer) else (2, 3)
    (gather,) = (rewrite for leaf, rewrite in leaves if leaf is mask)
    of_all = isinstance(gather, Gather) and gather.stage == 0 and not gather.merged and gather.axes == axes
    return formula if of_all else None


def _is_hoisted(context: PassContext, layer: Attention) -> bool:
    return context.hoisted is not None and context.hoisted.attention is layer.output


def _positions(context: PassContext, layer: Attention) -> tuple[Node | None, Node | None]:
    """Return the positions ``[B, N]`` of a layer's queries and of its keys; None for those that are all there."""
    plan = context.plans.get(layer.output)
    kept = context.stages[plan.stage - 1].original if plan is not None and plan.stage else None
    return kept, None if _is_hoisted(context, layer) else kept


class _Writer:
    """Writes attentions; what several of them read is made once."""

    def __init__(self, emit: Emitter, embeddings: Node) -> None:
        self.emit, self.embeddings = emit, embeddings
        self.made: dict[Any, Any] = {}

    def write(
        self, node: Node, given: dict[str, Any], formula: MaskFormula, rows: Node | None, columns: Node | None
    ) -> None:
        """Rewrite the fused attention ``node``, whose arguments are ``given``, for queries and keys at positions."""
        operands, scale = (given["query"], given["key"], given["value"]), given.get("scale")
        in_order = rows is columns and formula.is_causal_and_padding
        with self.emit.before(node):
            rows, columns = (self._all_positions() if each is None else each for each in (rows, columns))
            if in_order and not formula.of_key:
                node.args, node.kwargs = operands, _without_mask(given) | {"is_causal": True}
            elif torch.is_grad_enabled():
                visible = self._once(formula.visible, rows, columns, *formula.tables)
                node.args, node.kwargs = operands, _without_mask(given) | {"attn_mask": visible}
            elif in_order:
                visible = self._once(formula.visible_keys, columns, *formula.tables)
                node.target = torch.ops.sharp_compile.causal_attention.default
                node.args, node.kwargs = (*operands, visible, scale), {}
            else:
                of_query, of_key = self._looked_up(formula, rows, columns)
                node.target = torch.ops.sharp_compile.masked_attention.default
                text = mask_formula.write(formula.formula)
                node.args, node.kwargs = (*operands, rows, columns, of_query, of_key, text, scale), {}

    def _all_positions(self) -> Node:
        return self._once(_all_positions, self.embeddings)

    def _looked_up(self, formula: MaskFormula, rows: Node, columns: Node) -> tuple[list[Node], list[Node]]:
        of_query = [self._once(each.at, each.table, rows) for each in formula.of_query]
        return of_query, [self._once(each.at, each.table, columns) for each in formula.of_key]

    def _once(self, function: Callable[..., Tensor], *arguments: Node) -> Node:
        """Return the node of ``function(*arguments)``, in front of where it is first needed."""
        if (function, *arguments) not in self.made:
            self.made[function, *arguments] = self.emit(function, *arguments)
        made: Node = self.made[function, *arguments]
        return made


def _all_positions(embeddings: Tensor) -> Tensor:
    rows, length, _ = embeddings.shape
    return torch.arange(length, device=embeddings.device).expand(rows, -1)


def _without_mask(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("scale", "enable_gqa") if name in given}


def _erase_unused(graph: Graph, masks: Collection[Node], planned: Collection[Node]) -> None:
    """Erase masks that nothing reads any more, and what was computed for them alone."""
    candidates = ancestors(*masks) if masks else []
    for node in reversed(candidates):
        is_pure = node.op in ("call_function", "call_method") and not writes_into_first(node)
        if is_pure and not node.users and node not in planned:
            graph.erase_node(node)

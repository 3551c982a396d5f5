"""Puts the selection into a graph: from the state of the scoring layer to the kept positions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from ...kernels.keep import keep_counts, keep_positions
from ...selectors import Context, Rule
from ...selectors.context import among
from ..analysis.attention import Attention
from ..analysis.attention_mask import MaskFormula
from ..analysis.cut_sites import CutSite
from ..analysis.rope import RopeSubgraph, rope_module
from ..analysis.selector_functions import named, on_copies, try_selector
from ..analysis.tensor_parallel import TensorParallelInfo
from ..context import PassContext
from ..errors import SelectorError
from ..fx.nodes import example_value, fake_like


@dataclass(frozen=True)
class Tokens:
    """The kinds of the tokens of one stage, as nodes ``[B, S]``.

    ``is_visual`` (real tokens only), ``is_padding`` and ``is_leading`` (the padding in front of the first real token of
    a row) are bool; ``frame`` is int64, -1 where a token is not visual. ``visual`` ``[B]`` int64 is the number of
    visual tokens that each row had before any cut.
    """

    is_visual: Node
    is_padding: Node
    is_leading: Node
    frame: Node
    visual: Node

    @property
    def kinds(self) -> tuple[Node, Node, Node, Node]:
        """All that has an entry for each token."""
        return self.is_visual, self.is_padding, self.is_leading, self.frame


@dataclass(frozen=True)
class Selection:
    """What was chosen at one layer, as nodes.

    Attributes:
        positions: of the kept tokens, ``[B, kept]`` int64 in the tokens of the layer.
        scores: ``[B, S]`` float32, NaN where a token is not visual.
        merge_into: the positions of what stands for each token, ``[B, S]`` int64; None without merging.
        tokens: the kinds of the kept tokens.
        segment: the segments that the rule scored by, ``[B, S]`` int64, -1 where a token is in none; None where it
            knows no segments.
    """

    positions: Node
    scores: Node
    merge_into: Node | None
    tokens: Tokens
    segment: Node | None


def tried(rule: Rule, layer: int, attention: Attention | None, hidden: Node, rope: RopeSubgraph | None) -> Rule:
    """Return a user's function as a rule that the passes can rely on; a rule of ours as it is.

    It is called once on fake tensors, of the sizes that the graph was traced with. That shows whether it tells which
    tokens stand for others, and which tensors of the layer it writes into: those it gets as copies from then on.
    The other arguments are ``emit_selection``'s.

    Raises:
        SelectorError: for a function that looks at the values of tensors, or fails.
    """
    if rule.merges is not None:
        return rule
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def like(value: Any) -> Any:
        return fake_like(example_value(value), mode)

    rotate, state, inputs = _layer_state(attention, rope)
    entering = like(hidden)
    rows, length, _ = entering.shape
    with mode, torch.no_grad():
        kinds = [
            torch.empty(rows, length, dtype=dtype, device=entering.device)
            for dtype in (torch.bool, torch.bool, torch.int64)
        ]
        budget = torch.empty(rows, dtype=torch.int64, device=entering.device)
        of_layer = [*map(like, state)]
        rotated = functools.partial(_rotated, rotate, [*map(like, inputs)])
        context = _context(layer, entering, kinds, length, budget, of_layer, rotated)
        result, written = try_selector(rule.score, context)
        merging = _checked(result, kinds[0])[1] is not None
    return replace(rule, score=on_copies(rule.score, written), merges=merging)


def emit_selection(
    context: PassContext,
    site: CutSite,
    hidden: Node,
    tokens: Tokens,
    kept: int | Node,
    queries: tuple[GraphModule, list[Node]] | None = None,
    positions: Node | None = None,
) -> Selection:
    """Add the nodes that score the tokens of a layer and choose the kept ones.

    Args:
        context: of the graph; its rule is as ``tried`` gives it.
        site: the scoring layer as the graph has it now, and the share of the visual tokens that is kept.
        hidden: what enters the layer by now, ``[B, S, C]``.
        tokens: the kinds of the layer's tokens.
        kept: how many tokens a row keeps, a number or the node of one.
        queries: the function of ``lazy_queries`` and its inputs, where the layer does not compute all queries.
        positions: of the layer's tokens in the whole sequence, ``[B, S]``; None where they are all there.
    """
    emit, rule = context.emit, context.rule
    rotate, state, rotation_inputs = _layer_state(site.attention, site.rope)
    asked, query_inputs = queries or (None, [])
    if asked is not None:
        state[0] = None
    mask_inputs = [] if site.formula is None else [positions, *site.formula.tables]
    constants = [emit.constant(value, like=hidden) for value in rule.constants]
    groups = state, constants, rotation_inputs, query_inputs, mask_inputs
    named_rule = replace(rule, score=named(rule.score)) if emit.trace else rule
    select = _selecting(site, named_rule, rotate, asked, context.ranks, tuple(map(len, groups)))
    merging, segmenting = bool(rule.merges), rule.segments is not None
    inputs = hidden, *tokens.kinds, tokens.visual, kept, *itertools.chain(*groups)
    if emit.trace:
        inputs = tuple(map(emit.detached, inputs))
    positions, scores, is_visual, is_padding, is_leading, frame, *others = emit(
        select, *inputs, results=6 + merging + segmenting
    )
    return Selection(
        positions,
        scores,
        others[0] if merging else None,
        Tokens(is_visual, is_padding, is_leading, frame, tokens.visual),
        others[-1] if segmenting else None,
    )


def _selecting(
    site: CutSite,
    rule: Rule,
    rotate: Callable[..., Tensor],
    asked: GraphModule | None,
    ranks: TensorParallelInfo | None,
    sizes: Sequence[int],
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the selection as a function of plain tensors.

    Args:
        site: the scoring layer.
        rule: the selection rule.
        rotate: rotates keys, given the third group of inputs.
        asked: the function of ``lazy_queries``, of the fourth group; None where the layer computes all queries.
        ranks: those that share the work, None where there are no others.
        sizes: how many inputs are in each group: the state of the layer, the constants of the rule, those two, and the
            positions of the tokens with the tables of the mask's formula.
    """
    bounds = [*itertools.pairwise(itertools.accumulate(sizes, initial=0))]

    def select(
        hidden: Tensor,
        is_visual: Tensor,
        is_padding: Tensor,
        is_leading: Tensor,
        frame: Tensor,
        visual: Tensor,
        kept: int,
        *groups: Any,
    ) -> tuple[Tensor, ...]:
        of_layer, constants, inputs, of_queries, of_mask = (groups[start:end] for start, end in bounds)
        with torch.no_grad():
            kinds = is_visual, is_padding, is_leading
            counts = keep_counts(*kinds, site.cut.kept(visual), kept)
            told = is_visual, is_padding, frame
            rotated = functools.partial(_rotated, rotate, inputs)
            context = _context(site.cut.layer, hidden, told, kept, counts.visual, of_layer, rotated)
            if asked is not None:
                context = replace(context, queries=_computed(asked, of_queries, is_visual))
            if site.formula is not None:
                context = _with_mask_rows(context, site.formula, *of_mask)
            if ranks is not None and site.share_heads:
                context = _with_all_heads(context, ranks)
            scores, merge_into = _checked(rule.score(context, *constants), is_visual)
            if (merge_into is not None) != bool(rule.merges):
                raise SelectorError("the selector must return a pair always or never, on fake tensors too")
            positions = keep_positions(scores, *kinds, counts, kept)
            if ranks is not None:
                positions = ranks.broadcast_from_rank0(positions)
                merge_into = None if merge_into is None else ranks.broadcast_from_rank0(merge_into)
            of_kept = (kind.gather(1, positions) for kind in (*kinds, frame))
            standing = () if merge_into is None else (_valid_merges(merge_into, is_visual),)
            segments = () if rule.segments is None else (rule.segments(context),)
            return positions, scores.float().where(is_visual, float("nan")), *of_kept, *standing, *segments

    return select


def _rotated(rotate: Callable[..., Tensor], inputs: Sequence[Tensor], keys: Tensor) -> Tensor:
    return rotate(keys, *inputs)


def _layer_state(
    attention: Attention | None, rope: RopeSubgraph | None
) -> tuple[Callable[..., Tensor], list[Any], list[Node]]:
    """Return what a rule may look at of a layer's attention.

    Returns:
        A function that rotates keys, given the nodes that are the last result; the query, the keys, those before their
        rotation, the mask, the scale, the number of heads and the sinks, all None without attention; and these nodes.
    """
    if attention is None or rope is None:
        return lambda keys: keys, [None] * 8, []
    rotate, inputs = rope_module(rope)
    pre_rope = [rope.pre_rope, rope.is_bshd]
    heads = example_value(attention.query).shape[1]
    others = [attention.mask, attention.scale, heads, attention.sinks]
    return rotate, [attention.query, attention.key, *pre_rope, *others], inputs


def _context(
    layer: int,
    hidden: Tensor,
    kinds: Sequence[Tensor],
    kept: int,
    budget: Tensor,
    state: Sequence[Any],
    rotate: Callable[[Tensor], Tensor],
) -> Context:
    """Return the context of a layer's tensors: kinds of its tokens, and those of ``_layer_state``."""
    is_visual, is_padding, frame = kinds
    query, key, pre_rope, is_bshd, mask, scale, heads, sinks = state
    if is_bshd:
        pre_rope = pre_rope.transpose(1, 2)
    if mask is not None:
        # Columns after the tokens are room in a cache.
        mask = mask[..., : hidden.shape[1]]
    return Context(
        among(query),
        heads,
        key,
        pre_rope,
        hidden,
        is_visual,
        is_padding,
        frame,
        scale,
        mask,
        kept,
        budget,
        layer,
        rotate=rotate,
        sinks=sinks,
    )


def _with_mask_rows(context: Context, formula: MaskFormula, positions: Tensor | None, *tables: Tensor) -> Context:
    """Return the context of a layer that knows how its mask is made, of tokens at positions ``[B, S]``."""
    if positions is None:
        rows, length = context.is_visual.shape
        positions = torch.arange(length, device=context.is_visual.device).expand(rows, -1)
    columns = positions

    def mask_rows(rows: Tensor) -> Tensor:
        return formula.visible(columns.gather(1, rows), columns, *tables)

    return replace(context, mask_rows=mask_rows, is_causal=formula.is_causal_and_padding)


def _with_all_heads(own: Context, ranks: TensorParallelInfo) -> Context:
    """Return the context of a layer whose heads ``ranks`` share, from that of a rank's own heads.

    The keys of the other ranks are rotated here, as they were there: one exchange is enough for both kinds of keys.
    """

    def rotate(keys: Tensor) -> Tensor:
        # The graph knows the rotation for as many heads as a rank has.
        return torch.cat([own.rotate(part) for part in keys.chunk(ranks.number, dim=1)], dim=1)

    pre_rope = ranks.gather_heads(own.grouped_key_unrotated)
    return replace(
        own,
        queries=lambda rows: ranks.gather_heads(own.queries(rows)),
        heads=ranks.number * own.heads,
        grouped_key=rotate(pre_rope),
        grouped_key_unrotated=pre_rope,
        rotate=rotate,
    )


def _computed(module: GraphModule, inputs: Sequence[Tensor], is_visual: Tensor) -> Callable[[Tensor | None], Tensor]:
    """``Context.queries`` of a layer that has not computed them, by the function of ``passes.rewrite.lazy_queries``."""

    def queries(rows: Tensor | None) -> Tensor:
        if rows is None:
            rows = torch.arange(is_visual.shape[1], device=is_visual.device)
        return module(rows.expand(is_visual.shape[0], -1), *inputs)

    return queries


def _valid_merges(merge_into: Tensor, may_merge: Tensor) -> Tensor:
    """``merge_into`` ``[B, S]`` where it leads from and to a token that may merge ``[B, S]``; else the own position."""
    last = merge_into.shape[1] - 1
    own = torch.arange(merge_into.shape[1], device=merge_into.device).expand_as(merge_into)
    there = merge_into.clamp_min(0).clamp_max(last)
    return merge_into.where(may_merge & may_merge.gather(1, there) & (there == merge_into), own)


def _checked(result: Any, is_visual: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the scores and the representatives that a rule returned, None where it returned scores alone."""
    shape, is_pair = is_visual.shape, isinstance(result, tuple | list) and len(result) == 2
    scores, merge_into = result if is_pair else (result, None)
    into_fits = isinstance(merge_into, Tensor) and merge_into.shape == shape and merge_into.dtype == torch.int64
    if not isinstance(scores, Tensor) or scores.shape != shape or (is_pair and not into_fits):
        got = " and ".join(map(_describe_value, result)) if is_pair else _describe_value(result)
        raise SelectorError(
            f"the selector must return a tensor [B, S] = {list(shape)}, it returned {got}; or a pair: such a tensor, "
            "and the position of what stands for each token, int64 of that shape"
        )
    return scores, merge_into


def _describe_value(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"

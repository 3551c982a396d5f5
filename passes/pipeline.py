"""The way of a graph through the passes, in five phases.

    canonicalize    the same graph, in a form that shows more
    analyze         find the decoder, the sites of the cuts, padding; whatever is unknown declines
    plan            prove how each node after a cut runs on fewer tokens
    rewrite         add the selection, shorten what comes after
    finalize        what the graph returns, and the shapes that it has now

All of it happens in a copy: who declines, in the first three phases, leaves the caller's graph as it was.
"""

from __future__ import annotations

import logging
import operator
from dataclasses import replace
from typing import Any

from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from ..observability import artifact, phase
from ..options import Config, Cut
from ..selector_registry import find_rule
from .analysis.attention import Attention, as_rewritten
from .analysis.attention_mask import MaskFormula, read_mask
from .analysis.best_keys import all_keys, check_chosen_after_cut
from .analysis.cut_sites import CutSite, find_cut_sites
from .analysis.decoder import check_whole, find_decoder
from .analysis.frames import emit_frames, find_frames
from .analysis.injection import Injection, emit_masks, injected_elements, visual_mask, visual_tokens
from .analysis.maskable import check_maskable, first_masked
from .analysis.padding import padding_mask, token_kinds
from .analysis.residual_stream import check_single_stream
from .analysis.rope import find_rope
from .analysis.selector_functions import name_of
from .analysis.tensor_parallel import find_tensor_parallel
from .canonicalize.best_keys import write_best_keys
from .canonicalize.equal_views import merge_equal_views
from .canonicalize.flash_to_sdpa import check_flash_lowered, lower_flash_to_sdpa
from .canonicalize.flex_to_sdpa import check_lowered, lower_flex_to_sdpa
from .canonicalize.functionalize import make_functional, make_injections_functional
from .canonicalize.sinks import write_sinks
from .canonicalize.static_cache import find_slack
from .canonicalize.whole_slices import write_whole_slices
from .context import PassContext, PruneResult, TextCheck
from .errors import CannotPrune
from .fx.emit import Emitter
from .fx.garbage import without_gc
from .fx.nodes import arguments, copy_of, copy_with_nodes, example_tensor, example_value, format_node
from .fx.sizes import expression
from .held_positions import check_kinds_known
from .rewrite.attention_masks import replace_masks
from .rewrite.early_gather import hoist
from .rewrite.finalize import finalize
from .rewrite.lazy_queries import query_module
from .rewrite.segment_mask import emit_segment_mask, steered_formulas
from .rewrite.selection import Tokens, emit_selection, tried
from .rewrite.shrink import Shrinker
from .token_dim.plan import least_tokens
from .token_dim.solver import probe

log = logging.getLogger(__name__)


class _NotHoisted(Exception):
    """The cut can't be at the input of its layer."""


def with_injections(module: GraphModule) -> GraphModule:
    """Return a copy to rewrite, in which writes of features among embeddings are nodes of their own."""
    copy = copy_of(module)
    make_injections_functional(copy.graph)
    return copy


@without_gc()
def prune(
    module: GraphModule, injection: Injection, config: Config, ended: Any = None, trace: bool = True
) -> PruneResult | None:
    """Shorten the decoder that reads the injected features.

    Args:
        module: a graph of Dynamo's, which is only read.
        injection: where the visual features are in it.
        config: where to cut, to what share, by which rule.
        ended: why Dynamo ended the graph where it did (``GraphCompileReason``), None if that is not known.
        trace: False where Dynamo will trace the result again, see ``passes.fx.emit.Emitter``.

    Returns:
        The pruned copy, and what was done; None where no decoder of this graph reads the features.

    Raises:
        CannotPrune: where there is one, and it can't be proven right to shorten it.
    """
    if find_decoder(module.graph, injection.embeddings) is None:
        return None
    for may_hoist in [True, False] if config.hoist else [False]:
        copy, nodes = copy_with_nodes(module)
        context = PassContext(Emitter(copy, trace), injection.among(nodes), config)
        with phase("canonicalize", copy, log):
            canonicalize(context)
        with phase("analyze", copy, log):
            analyze(context, ended)
        try:
            with phase("plan", copy, log):
                plan(context, may_hoist)
        except _NotHoisted as reason:
            log.debug("the cut stays at the end of its layer: %s", reason)
            continue
        with phase("rewrite", copy, log):
            rewrite(context)
        with phase("finalize", copy, log):
            return finalize(context)
    raise AssertionError("a cut that is not hoisted needs no second attempt")


def canonicalize(context: PassContext) -> None:
    """Rewrite the graph in a form that shows more, with the same results."""
    embeddings = context.injection.embeddings
    make_functional(context.graph, embeddings)
    write_whole_slices(context.graph)
    merge_equal_views(context.graph, embeddings)
    write_best_keys(context.graph)
    write_sinks(context.graph)
    context.slack = find_slack(context.emit, embeddings)
    context.flex = lower_flex_to_sdpa(context.emit, embeddings)
    context.flash = lower_flash_to_sdpa(context.emit, embeddings)


def analyze(context: PassContext, ended: Any) -> None:
    """Find all that is to be known of the graph, and write nothing.

    Raises:
        CannotPrune: where something is not known well enough.
    """
    embeddings, config = context.injection.embeddings, context.config
    check_lowered(context.emit.module)
    check_flash_lowered(context.emit.module, embeddings)
    decoder = find_decoder(context.graph, embeddings)
    assert decoder is not None
    check_whole(decoder, ended)
    context.decoder, context.ranks, chosen = decoder, find_tensor_parallel(decoder), find_rule(config)
    sites, context.remark = find_cut_sites(decoder, config.cuts, chosen.needs_attention)
    masked = sites[0].attention or next(layer for layer in decoder.layers if layer is not None)
    masked = replace(masked, mask=None if masked.mask is None else all_keys(masked.mask))
    context.mask = masked.mask
    context.formulas = _mask_formulas(context)
    context.sites = [_scored(context, site) for site in sites]
    length = example_value(embeddings).shape[1]
    context.is_padding = padding_mask(masked, length, context.slack.padded_lengths, context.formula_of(context.mask))
    first = context.sites[0]
    context.rule = chosen = tried(chosen, first.cut.layer, first.attention, first.hidden, first.rope)
    for site in context.sites if chosen.merges else ():
        check_single_stream(decoder, site, f"selector={name_of(config.selector)!r}")
    context.steering = config.segment if config.segment is not None and config.segment.scope == "forward" else None
    if context.steering is not None:
        check_maskable(decoder, first.cut.layer)


def plan(context: PassContext, may_hoist: bool) -> None:
    """Prove how each node after a cut runs on fewer tokens, for the first cut at the input of its layer or after it.

    Raises:
        CannotPrune: where that can't be proven.
        _NotHoisted: where it can't be with the cut at the input; the graph is spoilt then.
    """
    graph, decoder, embeddings = context.graph, context.decoder, context.injection.embeddings
    first = context.sites[0]
    tail, layer = decoder.tail(), decoder.layers[first.cut.layer]
    context.hoisted, context.queries = None, None
    if may_hoist and layer is not None and not (context.rule.merges or context.steering):
        context.hoisted = hoist(first, layer, context.slack.without(layer).key)
    if context.hoisted is not None:
        try:
            context.plans = probe(
                graph, embeddings, context.cuts, context.slack.padded_lengths, context.hoisted.pointwise, tail
            )
            context.queries = query_module(context.hoisted, context.plans)
        except CannotPrune as reason:
            raise _NotHoisted(str(reason)) from reason
    else:
        context.plans = probe(graph, embeddings, context.cuts, context.slack.padded_lengths, tail=tail)
    artifact("plan", lambda: str(context.plans))
    after_cut = {node for node, plan in context.plans.items() if plan.stage}
    check_kinds_known(graph, after_cut)
    check_chosen_after_cut(graph, after_cut)
    context.returned_lengths = _returned_lengths(context)
    context.least = least_tokens(context.plans)
    length = _length_left(context)
    # A symbolic length is compared once: Dynamo gets a guard, and compiles shorter ones anew.
    if context.least > 1 and length is not None and bool(length < context.least):
        raise CannotPrune(too_short(length, context.least))


def rewrite(context: PassContext) -> None:
    """Add the selection at each cut, and shorten what comes after it."""
    emit, hoisted = context.emit, context.hoisted
    shrinker = Shrinker(emit, context.plans, context.injection.embeddings, context.cuts)
    tokens, frame, segment = _emit_tokens(context, shrinker)
    with emit.before(shrinker.insertion_point()):
        sequence = emit.size(context.injection.embeddings, 1)
        visual = _visual_tokens(emit, context.injection)
        text = emit(_count_text, tokens.is_visual, tokens.is_padding)
    scores = None
    for stage, site in enumerate(context.sites):
        with emit.before(shrinker.insertion_point()):
            kept = _kept(emit, site.cut, visual)
            length = emit.arithmetic(operator.add, emit.arithmetic(operator.sub, sequence, visual), kept)
            site = _rewritten(context, site) if stage else site
            hidden = shrinker.resolve(site.hidden, stage)
            queries = None if stage else context.queries
            positions = shrinker.stages[-1].original if stage else None
            chosen = emit_selection(context, site, hidden, tokens, length, queries, positions)
        tokens = chosen.tokens
        shrinker.begin_stage(chosen.positions, length, chosen.merge_into)
        if stage == 0:
            scores, segment = chosen.scores, segment or chosen.segment
            if hoisted is not None:
                hoisted.finish(emit, chosen.positions)
    shrinker.finish()
    context.stages = shrinker.stages
    context.dense_masks = replace_masks(context)
    context.text_check = text_check(example_value(context.injection.embeddings))
    if context.text_check == "late":
        _spoil_rows(emit, context.stages[-1].hidden, text, length)
    context.lengths = dict(sequence_length=sequence, visual_tokens=visual, kept_tokens=kept, pruned_length=length)
    aux = dict(kept=context.stages[-1].original, scores=scores, frame=frame, segment=segment, text=text)
    if not emit.trace and isinstance(visual, Node):
        aux["visual"] = visual
    context.aux_outputs = {name: node for name, node in aux.items() if node is not None}


def _mask_formulas(context: PassContext) -> dict[Node, MaskFormula]:
    """Return what the masks of a decoder were made from, of those that are understood."""
    length = expression(example_value(context.injection.embeddings).shape[1])
    padded = {expression(size) for size in context.slack.padded_lengths}
    found = {}
    for mask in dict.fromkeys((context.mask, *(layer.mask for layer in context.decoder.layers if layer is not None))):
        if mask is None or (formula := read_mask(mask, context.slack.counts)) is None:
            continue
        rows, columns = (expression(size) for size in example_value(mask).shape[-2:])
        # Slots of a cache that are after the tokens are hidden, if what is after a query is.
        if rows == length and (columns == length or (columns in padded and formula.is_causal)):
            found[mask] = formula
    return found


def text_check(embeddings: Tensor) -> TextCheck:
    """Return when the text of a graph with these embeddings ``[B, S, C]`` is checked, see ``PruneResult``."""
    if isinstance(embeddings.shape[0], int) and embeddings.shape[0] == 1:
        return "never"
    # Memory of the host is read at once, and meta tensors have none.
    return "now" if embeddings.device.type in ("cpu", "meta") else "late"


def too_short(length: int | SymInt, least: int) -> str:
    """Return the reason where fewer tokens would be kept than a state of a fixed size is filled with."""
    return (
        f"{length} tokens would be kept, but a layer after the cut keeps the last {least} in its state (a sliding "
        "window in a static cache, a convolution); use a dynamic cache or a higher retention"
    )


def _scored(context: PassContext, site: CutSite) -> CutSite:
    """Return a site with all that is known of what its tokens are scored by."""
    attention, rope, ranks, formula = site.attention, None, context.ranks, None
    if attention is not None:
        formula = context.formula_of(attention.mask)
        attention = context.slack.without(attention)
        _check_scored(attention, site.cut.layer)
        rope = find_rope(context.decoder, attention, site.hidden)
    share_heads = ranks is not None and ranks.share_heads(site.cut.layer, site.hidden, attention, rope)
    return replace(site, attention=attention, rope=rope, share_heads=share_heads, formula=formula)


def _rewritten(context: PassContext, site: CutSite) -> CutSite:
    """Return a site after another cut, with the arguments that its attention has by now."""
    if site.attention is None:
        return site
    attention = as_rewritten(context.graph, site.attention)
    return replace(site, attention=context.slack.without(attention))


def _check_scored(attention: Attention, layer: int) -> None:
    query, key = example_tensor(attention.query), example_tensor(attention.key)
    if query is None or key is None or query.ndim != 4 or key.ndim != 4:
        raise CannotPrune(f"the queries and keys of layer {layer} are not [B, H, S, D]")
    if expression(key.shape[2]) != expression(query.shape[2]):
        raise CannotPrune(
            f"layer {layer} attends to {key.shape[2]} keys from {query.shape[2]} positions: a cache that holds tokens "
            "already (an earlier turn, a prefix, a chunk of the prompt that prefill_chunk_size cut off), or a "
            "preallocated (static) one that was made before this call; start with an empty cache and the whole prompt"
        )


def _length_left(context: PassContext) -> int | SymInt | None:
    """S' after the last cut, as the graph was traced; None where another graph injected the features."""
    visual: Any = visual_tokens(context.injection)
    if visual is None:
        return None
    length: int | SymInt = example_value(context.injection.embeddings).shape[1] - visual
    return length + context.sites[-1].cut.kept(visual)


def _returned_lengths(context: PassContext) -> dict[Node, int]:
    """Return the numbers of tokens after a cut that a graph returns, less S, each.

    The code that called the graph counts positions by them, as a cache does those that it has seen.

    Raises:
        CannotPrune: for a number that is not S and a constant.
    """
    length = expression(example_value(context.injection.embeddings).shape[1])
    found: dict[Node, int] = {}
    for node in arguments(context.graph.output_node())[0]:
        if isinstance(example_value(node), SymInt) and node in context.plans and context.plans[node].stage:
            offset = expression(example_value(node)) - length
            if not offset.is_Integer:
                raise CannotPrune(
                    f"the graph returns {format_node(node)}, a number of tokens that is not known after a cut"
                )
            found[node] = int(offset)
    return found


def _emit_tokens(context: PassContext, shrinker: Shrinker) -> tuple[Tokens, Node, Node | None]:
    """Add what tells the kinds of the tokens, their frames, and the segments of the forward pass if it has any."""
    emit, first = context.emit, context.sites[0]
    steering = context.steering
    with emit.before(shrinker.insertion_point() if steering is None else first_masked(context.decoder)):
        injection = emit_masks(emit, context.injection)
        is_visual = emit(visual_mask, *injection.masks)
        frames = find_frames(injection, first.rope, context.config.tokens_per_frame, emit)
        frame = emit_frames(emit, frames, injection, is_visual)
    segment = None
    if steering is not None:
        segment = emit_segment_mask(emit, context.decoder, first.cut.layer, frame, steering)
        context.formulas |= steered_formulas(context.decoder, first.cut.layer, context.formulas, segment)
    with emit.before(shrinker.insertion_point()):
        kinds = token_kinds(context.is_padding)
        tokens = Tokens(*emit(kinds, is_visual, frame, *context.shows_padding, results=5))
    return tokens, frame, segment


def _visual_tokens(emit: Emitter, injection: Injection) -> int | Node:
    """Return visual tokens of a row: the elements of the features over the channels of a token, and over the rows."""
    rows, channels = emit.size(injection.embeddings, 0), emit.size(injection.embeddings, 2)
    return emit.arithmetic(
        operator.floordiv, injected_elements(emit, injection), emit.arithmetic(operator.mul, rows, channels)
    )


def _kept(emit: Emitter, cut: Cut, visual: int | Node) -> int | Node:
    """``Cut.kept`` of a length that may be a node."""
    share = emit.arithmetic(operator.mul, visual, cut.numerator)
    share = emit.arithmetic(operator.add, share, cut.denominator - 1)
    return emit.arithmetic(operator.floordiv, share, cut.denominator)


def _spoil_rows(emit: Emitter, hidden: Node, text: Node, length: int | Node) -> None:
    """Have all readers of the hidden states ``[B, S', C]`` read NaN in rows with more ``text`` ``[B]`` than S'."""
    readers = list(hidden.users)
    with emit.before(hidden.next):
        spoilt = emit(_spoilt, hidden, text, length)
    for reader in readers:
        reader.replace_input_with(hidden, spoilt)


def _spoilt(hidden: Tensor, text: Tensor, length: int) -> Tensor:
    return hidden.masked_fill((text > length)[:, None, None], float("nan"))


def _count_text(is_visual: Tensor, is_padding: Tensor) -> Tensor:
    return (~is_visual & ~is_padding).sum(1)

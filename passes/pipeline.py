"""The way of a graph: find, prove, then rewrite.

Three passes first write the graph in a form that shows more, with the same results; then all that can be read is found
and proven, and the rewriting behind it does what was planned. Whoever declines leaves the caller's own graph untouched:
all of this happens in a copy.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import SymInt, Tensor
from torch.fx import Graph, GraphModule, Node

from ..config import Config, Cut
from ..selectors import rule
from .analysis.attention import Attention, as_rewritten
from .analysis.cut_sites import place_cuts
from .analysis.decoder import check_whole, find_decoder
from .analysis.frames import emit_frames, find_frames
from .analysis.injection import Injection, emit_masks
from .analysis.residual_stream import check_carries_all
from .analysis.rope import find_rotation
from .analysis.selector_functions import name_of
from .analysis.tensor_parallel import find_ranks
from .canonicalize.flex_to_sdpa import read_as_fused, write_back
from .canonicalize.functionalize import make_functional, make_injections_functional
from .canonicalize.static_cache import follow_length, moving_buffers, restore_length, scored_attention
from .canonicalize.whole_slices import write_whole_slices
from .errors import CannotPrune
from .fx.emit import Emitter
from .fx.nodes import arguments, copy_of, example, example_tensor, is_hidden_states
from .fx.sizes import expression
from .held_positions import tell_kept_positions
from .rewrite.early_gather import hoist
from .rewrite.lazy_queries import query_module
from .rewrite.segment_mask import check_maskable, emit_segment_mask, first_masked
from .rewrite.selection import Tokens, emit_selection, padding_mask, token_kinds, tried, visual_mask
from .rewrite.shrink import Shrinker
from .token_dim.solver import Returned, least_tokens, probe


@dataclass(frozen=True)
class Pruned:
    """What was done to a graph, whose module now returns some tensors more than before, at the end.

    ``cuts`` are the layers and shares as they were done, ``remark`` says why one is not where it was asked for ("" if
    all are). ``told`` names the tensors: those that a report has by these names, and ``text``, the number of text
    tokens of each row, ``[B]`` int64. ``lengths`` are by the names of a report's too: numbers, or the nodes of symbolic
    ones. ``hoisted`` says that the first cut is at the input of its layer, for all but keys and values. ``returned``
    are those of the graph's own results that are shortened, ``states`` the places of those that are hidden states
    ``[B, S', C]`` behind the last cut. ``least`` is the fewest tokens that may be left of a row.
    """

    cuts: tuple[Cut, ...]
    num_layers: int
    remark: str
    lengths: dict[str, int | Node]
    hoisted: bool
    told: tuple[str, ...]
    returned: tuple[Returned, ...]
    states: tuple[int, ...]
    least: int


def with_injections(module: GraphModule) -> GraphModule:
    """A copy to rewrite, in which writes of features among embeddings are nodes of their own."""
    copy = copy_of(module)
    make_injections_functional(copy.graph)
    return copy


def prune(
    module: GraphModule, injection: Injection, config: Config, ended: Any = None, trace: bool = True
) -> Pruned | None:
    """Shortens the decoder that reads the injected features.

    Args:
        module: a copy of Dynamo's; it is rewritten in place, unless the result is None or an error is raised.
        injection: where the visual features are.
        config: where to cut, to what share, by which rule.
        ended: why Dynamo ended the graph where it did (`GraphCompileReason`), None if that is not known.
        trace: False where Dynamo will trace the result again, see `passes.fx.emit.Emitter`.

    Returns:
        What was done; None where no decoder of this graph reads the features.

    Raises:
        CannotPrune: where there is one, and it can't be proven right to shorten it.
    """
    if find_decoder(module.graph, injection.embeddings) is None:
        return None
    emit = Emitter(module, trace)
    make_functional(module.graph, injection.embeddings)
    write_whole_slices(module.graph)
    buffers = follow_length(emit, injection.embeddings)
    flex = read_as_fused(emit, injection.embeddings)
    decoder = find_decoder(module.graph, injection.embeddings)
    assert decoder is not None
    check_whole(decoder, ended)
    ranks = find_ranks(decoder)
    chosen = rule(config)
    places, remark = place_cuts(decoder, config.cuts, chosen.needs_attention)
    scored = [None if place.attention is None else scored_attention(place.attention, buffers) for place in places]
    for place, attention in zip(places, scored, strict=True):
        if attention is not None:
            _check_scored(attention, place.cut.layer)
    capacities = [example(buffer).shape[-2] for buffer in buffers]
    masked = places[0].attention or next(layer for layer in decoder.layers if layer is not None)
    is_padding = padding_mask(masked, example(injection.embeddings).shape[1], capacities)
    rotations = [
        None if attention is None else find_rotation(decoder, attention, place.hidden)
        for place, attention in zip(places, scored, strict=True)
    ]
    share_heads = [
        ranks is not None and ranks.share_heads(place.cut.layer, place.hidden, attention, rotation)
        for place, attention, rotation in zip(places, scored, rotations, strict=True)
    ]
    chosen = tried(chosen, places[0].cut.layer, scored[0], places[0].hidden, rotations[0])
    if chosen.merges:
        for place in places:
            check_carries_all(decoder, place, f"selector={name_of(config.selector)!r}")
    steered = config.segment if config.segment is not None and config.segment.scope == "forward" else None
    if steered is not None:
        check_maskable(decoder, places[0].cut.layer)
    cuts = [place.after for place in places]
    hoisted, queries, tail = None, None, decoder.tail()
    layer = decoder.layers[places[0].cut.layer]
    if config.hoist and layer is not None and not (chosen.merges or steered):
        hoisted = hoist(places[0], layer, scored_attention(layer, buffers).key)
    if hoisted is not None:
        try:
            cuts[0] = hoisted.entry
            plans = probe(module.graph, injection.embeddings, cuts, capacities, hoisted.tokenwise, tail)
            queries = query_module(hoisted, plans)
        except CannotPrune:
            hoisted.undo()
            hoisted, cuts[0] = None, places[0].after
    if hoisted is None:
        plans = probe(module.graph, injection.embeddings, cuts, capacities, tail=tail)
    # From here on the graph is rewritten.
    shrinker = Shrinker(emit, plans, injection.embeddings, cuts)
    with emit.before(shrinker.first_reader() if steered is None else first_masked(decoder)):
        injection = emit_masks(emit, injection)
        is_visual = emit(visual_mask, *injection.masks)
        frames = find_frames(injection, rotations[0], config.tokens_per_frame, emit)
        frame = emit_frames(emit, frames, injection, is_visual)
    segment = None
    if steered is not None:
        segment = emit_segment_mask(emit, decoder, places[0].cut.layer, frame, steered)
    with emit.before(shrinker.first_reader()):
        sequence = emit.size(injection.embeddings, 1)
        visual = _visual_tokens(emit, injection)
        masks = [mask for mask in [masked.mask] if mask is not None]
        tokens = Tokens(*emit(token_kinds(is_padding), is_visual, frame, *masks, results=5))
        text = emit(_count_text, tokens.is_visual, tokens.is_padding)
    least = least_tokens(plans)
    scores = None
    for stage, (place, attention, rotation) in enumerate(zip(places, scored, rotations, strict=True)):
        with emit.before(shrinker.first_reader()):
            kept = _kept(emit, place.cut, visual)
            pruned = emit.arithmetic(operator.add, emit.arithmetic(operator.sub, sequence, visual), kept)
            # A symbolic length is compared once: Dynamo gets a guard, and compiles shorter ones anew.
            if least > 1 and (length := example(pruned)) is not None and bool(length < least):
                raise CannotPrune(too_short(length, least))
            if stage > 0 and attention is not None:
                attention = scored_attention(as_rewritten(module.graph, attention), buffers)
            hidden = shrinker.read(place.hidden, stage)
            chosen_here = emit_selection(
                emit,
                place.cut,
                attention,
                hidden,
                rotation,
                tokens,
                chosen,
                pruned,
                queries if stage == 0 else None,
                ranks,
                share_heads[stage],
            )
        tokens = chosen_here.tokens
        shrinker.enter(chosen_here.positions, pruned, chosen_here.into)
        if stage == 0:
            scores, segment = chosen_here.scores, segment or chosen_here.segment
            if hoisted is not None:
                hoisted.finish(emit, chosen_here.positions)
    shrinker.finish()
    told = {
        "kept": shrinker.stages[-1].original,
        "scores": scores,
        "frame": frame,
        "segment": segment,
        "text": text,
    }
    results = arguments(module.graph.output_node())[0]
    returned = [found for place, node in enumerate(results) if (found := plans.returned(node, place)) is not None]
    for stage in sorted({each.stage for each in returned} - {len(cuts)}):
        told[kept_at(stage)] = shrinker.stages[stage - 1].original
    channels = expression(example(injection.embeddings).shape[2])
    states = [
        each.place
        for each in returned
        if each.stage == len(cuts) and each.axis == 1 and is_hidden_states(results[each.place])
        if expression(example(results[each.place]).shape[2]) == channels
    ]
    told = {name: node for name, node in told.items() if node is not None}
    for buffer in moving_buffers(module.graph, buffers):
        if stage_of_buffer := plans[buffer].stage if buffer in plans else 0:
            short = shrinker.stages[stage_of_buffer - 1].length
            with emit.before(module.graph.output_node()):
                dropped = emit.arithmetic(operator.sub, sequence, short)
            restore_length(emit, buffer, dropped)
    kept_positions = [stage.original for stage in shrinker.stages]
    tell_kept_positions(module.graph, {node: plan.stage for node, plan in plans.items()}, kept_positions)
    _return_also(module.graph, *told.values())
    write_back(emit, flex)
    module.graph.lint()
    module.recompile()
    lengths = {
        "sequence_length": sequence,
        "visual_tokens": visual,
        "kept_tokens": kept,
        "pruned_length": pruned,
    }
    cuts_done = tuple(place.cut for place in places)
    return Pruned(
        cuts_done,
        len(decoder.layers),
        remark,
        lengths,
        hoisted is not None,
        tuple(told),
        tuple(returned),
        tuple(states),
        least,
    )


def too_short(length: int | SymInt, least: int) -> str:
    """The reason where fewer tokens would be kept than a state of a fixed size is filled with."""
    return (
        f"{length} tokens would be kept, but a layer behind the cut keeps the last {least} in its state (a sliding "
        "window in a static cache, a convolution); use a dynamic cache or a higher retention"
    )


def kept_at(stage: int) -> str:
    """The name by which ``told`` has the positions kept at a stage before the last."""
    return f"kept_{stage}"


def _check_scored(attention: Attention, layer: int) -> None:
    query, key = example_tensor(attention.query), example_tensor(attention.key)
    if query is None or key is None or query.ndim != 4 or key.ndim != 4:
        raise CannotPrune(f"the queries and keys of layer {layer} are not [B, H, S, D]")
    if expression(key.shape[2]) != expression(query.shape[2]):
        raise CannotPrune(
            f"layer {layer} attends to {key.shape[2]} keys from {query.shape[2]} positions: a cache that holds tokens "
            "already, or a preallocated (static) one that was made before this call; start with an empty cache"
        )


def injected_elements(emit: Emitter, injection: Injection) -> int | Node:
    """How many elements the injected features of all rows have, as a number or a node."""
    total: int | Node = 0
    for features in injection.features:
        elements: int | Node = 1
        value = example_tensor(features)
        # Features that another graph injected are an input without an example: as many elements, in one axis.
        for axis in range(1 if value is None else value.ndim):
            elements = emit.arithmetic(operator.mul, elements, emit.size(features, axis))
        total = emit.arithmetic(operator.add, total, elements)
    return total


def _visual_tokens(emit: Emitter, injection: Injection) -> int | Node:
    """Visual tokens of a row: the elements of the features over the channels of a token, and over the rows."""
    rows, channels = emit.size(injection.embeddings, 0), emit.size(injection.embeddings, 2)
    return emit.arithmetic(
        operator.floordiv, injected_elements(emit, injection), emit.arithmetic(operator.mul, rows, channels)
    )


def _kept(emit: Emitter, cut: Cut, visual: int | Node) -> int | Node:
    """`Cut.kept` of a length that may be a node."""
    share = emit.arithmetic(operator.mul, visual, cut.numerator)
    share = emit.arithmetic(operator.add, share, cut.denominator - 1)
    return emit.arithmetic(operator.floordiv, share, cut.denominator)


def _count_text(is_visual: Tensor, is_padding: Tensor) -> Tensor:
    return (~is_visual & ~is_padding).sum(1)


def _return_also(graph: Graph, *nodes: Node) -> None:
    output = graph.output_node()
    output.args = ((*arguments(output)[0], *nodes),)

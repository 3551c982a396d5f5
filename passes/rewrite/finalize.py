"""The end of a rewritten graph: what it returns, and the shapes that its nodes have now."""

from __future__ import annotations

import operator

from torch.fx import Node

from ..canonicalize.flash_to_sdpa import restore_flash
from ..canonicalize.flex_to_sdpa import restore_flex
from ..context import AUX_OUTPUT, PassContext, PruneResult, kept_at
from ..fx.nodes import arguments, example_value, is_hidden_states
from ..fx.sizes import expression, hint
from ..held_positions import tell_kept_positions
from ..token_dim.plan import Returned
from .eager_loops import leave_to_eager
from .metadata import check_shapes, forget, refresh


def finalize(context: PassContext) -> PruneResult:
    """Complete the pruned graph of a context."""
    graph, plans, stages = context.graph, context.plans, context.stages
    results = arguments(graph.output_node())[0]
    returned = [found for place, node in enumerate(results) if (found := plans.returned(node, place)) is not None]
    states = _last_states(context, results, returned)
    # From here on the examples are those of fewer tokens, or none.
    _tell_shapes(context)
    for stage in sorted({each.stage for each in returned} - {len(stages)}):
        context.aux_outputs[kept_at(stage)] = stages[stage - 1].original
    _restore_windows(context)
    _restore_numbers(context)
    tell_kept_positions(graph, {node: plan.stage for node, plan in plans.items()}, [each.original for each in stages])
    for name, node in context.aux_outputs.items():
        node.meta[AUX_OUTPUT] = name
    output = graph.output_node()
    originals = {stage.original for stage in stages}
    positions = tuple(place for place, node in enumerate(arguments(output)[0]) if node in originals)
    output.args = ((*arguments(output)[0], *context.aux_outputs.values()),)
    restore_flex(context.emit, context.flex)
    restore_flash(context.emit, context.flash)
    leave_to_eager(context.emit.added, context.injection.embeddings)
    graph.lint()
    context.emit.module.recompile()
    return PruneResult(
        context.emit.module,
        tuple(site.cut for site in context.sites),
        len(context.decoder.layers),
        context.remark,
        context.lengths,
        context.hoisted is not None,
        tuple(context.aux_outputs),
        context.text_check,
        tuple(returned),
        states,
        positions,
        context.least,
        context.dense_masks,
    )


def _tell_shapes(context: PassContext) -> None:
    """Give the nodes after the cuts the example values that they have by now.

    Where Dynamo will trace the graph again, lengths are not known yet: these nodes have none then.
    """
    if not context.emit.trace:
        forget(context.plans)
        return
    refresh(context.plans)
    batch = hint(example_value(context.injection.embeddings).shape[0])
    check_shapes(context.plans, [hint(example_value(stage.length)) for stage in context.stages], batch)


def _restore_numbers(context: PassContext) -> None:
    """Return numbers of tokens as those of the whole sequence."""
    output = context.graph.output_node()
    for node, offset in context.returned_lengths.items():
        with context.emit.before(output):
            full = context.emit.arithmetic(operator.add, context.lengths["sequence_length"], offset)
        assert isinstance(full, Node)
        output.replace_input_with(node, full)


def _last_states(context: PassContext, results: tuple[Node, ...], returned: list[Returned]) -> tuple[int, ...]:
    """Return the places of hidden states ``[B, S', C]`` after the last cut among the results of a graph."""
    channels = expression(example_value(context.injection.embeddings).shape[2])
    return tuple(
        each.place
        for each in returned
        if each.stage == len(context.stages) and each.axis == 1 and is_hidden_states(results[each.place])
        if expression(example_value(results[each.place]).shape[2]) == channels
    )


def _restore_windows(context: PassContext) -> None:
    """Hand the buffers of sliding windows back as long as they were."""
    for buffer in context.slack.moving_buffers(context.graph):
        stage = context.plans[buffer].stage if buffer in context.plans else 0
        if stage:
            with context.emit.before(context.graph.output_node()):
                sequence, short = context.lengths["sequence_length"], context.stages[stage - 1].length
                dropped = context.emit.arithmetic(operator.sub, sequence, short)
            context.slack.restore(context.emit, buffer, dropped)

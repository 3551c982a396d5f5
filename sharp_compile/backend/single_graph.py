"""A graph that injects visual features itself: pruned at once, or made to tell the graphs after it."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

from torch.fx import Graph, GraphModule, Node

from .. import report
from ..integrations.transformers.flash_attention import hidden_by_flash_attention
from ..integrations.transformers.modality import kind_of_mask
from ..options import Config
from ..passes.analysis.equal_regions import count_distinct_layers
from ..passes.analysis.injection import Injection, find_injections
from ..passes.analysis.modality import KIND, modality_of, only
from ..passes.context import PruneResult
from ..passes.fx.emit import Emitter
from ..passes.fx.nodes import arguments, copy_with_nodes, example_value, writes_into_inputs
from ..passes.fx.part import part_of
from ..passes.pipeline import prune, with_injections
from ..report import GraphReport
from .injection_registry import publishing, return_injection
from .inner import Compiled, compile_later, compile_now, compiler, is_overwritten, reuses_layers
from .reporting import breaks_so_far, decline, describe, last_break, log_pruned, skip
from .runtime import Outputs, PrunedGraph


def compile_injecting(
    module: GraphModule,
    inputs: Sequence[Any],
    config: Config,
    later: bool = False,
    shown: GraphModule | None = None,
) -> Compiled:
    """Compile a graph that injects visual features: prune it, or have it tell the graphs after it.

    Args:
        module: the graph as Dynamo made it.
        inputs: what it is called with.
        config: the options.
        later: whether it is compiled when it runs (``inner.compile_later``).
        shown: a copy in which all injections can be seen, if there is one already.
    """
    began = time.perf_counter()
    if shown is None:
        shown = with_injections(module)
        label_modalities(shown.graph)
    compile_graph = compiler(config, inputs, later)
    graph_report, place = GraphReport(False, ""), None
    try:
        injections = injections_to_prune(shown.graph, config)
        ended = reason_of_end(module)
        attempts = (prune(shown, injection, config, ended, trace=not later) for injection in injections)
        pruned = next((attempt for attempt in attempts if attempt is not None), None)
        if injections and pruned is None:
            copy, nodes = copy_with_nodes(shown)
            emit = Emitter(copy, trace=not later)
            place = return_injection(emit, injections[-1].among(nodes), config.tokens_per_frame)
    except Exception as error:
        decline(report.add(graph_report), config, error)
        return compile_graph(module)
    report.add(graph_report)
    if not injections:
        graph_report.reason = f"features are injected in this graph that modality={config.modality!r} keeps as text is"
        return compile_graph(module)
    if pruned is None:
        assert place is not None
        return telling_later_graphs(compile_graph(copy), place, graph_report, config)
    describe(
        graph_report,
        pruned,
        began,
        f"visual features are injected in this graph, before a decoder of {pruned.num_layers} layers",
    )
    for name, length in pruned.lengths.items():
        setattr(graph_report, name, str(example_value(length)) if isinstance(length, Node) else length)
    log_pruned(graph_report, module, pruned.module)
    return run_pruned(compile_graph(pruned.module), graph_report, pruned, config, module)


def telling_later_graphs(compiled: Compiled, place: int, graph_report: GraphReport, config: Config) -> Compiled:
    """A graph that returns the embeddings as result ``place``: its run publishes where visual features are in them."""
    graph_report.reason = "visual features are injected in this graph, a later one has the decoder"
    # Asked for once: what breaks in later calls may be other models.
    broken = functools.cache(functools.partial(last_break, breaks_so_far()))
    hidden = hidden_by_flash_attention()

    def never_read() -> None:
        graph_report.reason = (
            "visual features were injected, but no compiled graph with a decoder read them: it ran eagerly, or on a "
            f"changed copy of the embeddings{broken()}{hidden}"
        )
        skip(graph_report, config, may_raise=False)

    return publishing(compiled, place, never_read)


def injections_to_prune(graph: Graph, config: Config, earlier: Injection | None = None) -> list[Injection]:
    """Return the injections of a graph, of the features that are to be pruned."""
    found = (only(injection, config.modality) for injection in find_injections(graph, earlier))
    return [injection for injection in found if injection is not None]


def label_modalities(graph: Graph) -> None:
    """Note the modality of the features that a graph injects, while the model's call is under way."""
    for injection in find_injections(graph):
        for mask, features in zip(injection.masks, injection.features, strict=True):
            kind = kind_of_mask(mask) if isinstance(mask, Node) else None
            if kind not in ("visual", "audio"):
                kind = modality_of(features) or kind
            features.meta[KIND] = kind


def run_pruned(
    compiled: Compiled, graph_report: GraphReport, pruned: PruneResult, config: Config, module: GraphModule
) -> PrunedGraph:
    """The pruned copy of a graph, ready to run; for a call that can't be pruned the graph itself, where that may be.

    A graph that has written into its inputs can't run again: the text of its rows is counted before it runs.
    """
    layers = count_distinct_layers(pruned.module.graph) if reuses_layers(config) else graph_report.num_layers
    graph_report.distinct_layers = layers
    may_run_unpruned, count_text, unpruned = config.on_skip != "raise", None, None
    if pruned.text_check == "now" and may_run_unpruned:
        if writes_into_inputs(module.graph):
            count_text = part_of(pruned.module, _text_and_length(pruned))
            may_run_unpruned = count_text is not None
        if may_run_unpruned:
            unpruned = compile_later(module, functools.partial(compile_now, config=config))
    outputs, graphs = Outputs.of(pruned, reason_of_end(module), is_overwritten(config)), (module, pruned.module)
    return PrunedGraph(compiled, graph_report, outputs, graphs, count_text, unpruned, config.on_skip == "warn")


def reason_of_end(module: GraphModule) -> Any:
    """Return why Dynamo ended a graph where it did: it leaves that on its module."""
    return getattr(module, "compile_subgraph_reason", None)


def _text_and_length(pruned: PruneResult) -> tuple[Node, int | Node]:
    """Return the text tokens of each row ``[B]``, and S', in a pruned graph."""
    names = pruned.aux_outputs
    outputs = arguments(pruned.module.graph.output_node())[0][-len(names) :]
    return outputs[names.index("text")], pruned.lengths["pruned_length"]

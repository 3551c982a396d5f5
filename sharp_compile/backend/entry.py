"""What Dynamo calls: options in, a compiled graph out.

A graph without visual tokens goes to the inner backend untouched. One that injects them is pruned (``single_graph``),
or tells the graphs after it where they are; one that reads embeddings from such a graph is pruned at run time
(``cross_graph``). What became of each graph is in its ``GraphReport``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch._dynamo.exc import ShortenTraceback
from torch.fx import Graph, GraphModule

from .. import report
from ..integrations import dynamo, dynamo_messages, ours, recompile_limit, transformers
from ..integrations.precompilation import take_backend_id
from ..integrations.tracing import TraceAgain, hands_over
from ..options import Config, with_mode
from ..passes.analysis.injection import find_injections, find_unknown, injects_into_input
from ..passes.canonicalize.equal_layers import NotEqual, write_out_equal_layers
from ..passes.errors import CannotPrune
from ..passes.fx.garbage import without_gc
from ..passes.fx.nodes import is_hidden_states
from ..passes.pipeline import with_injections
from ..report import GraphReport
from .callers import active_backend
from .cross_graph import LinkedGraph
from .injection_registry import find_annotated, registry
from .inner import Compiled, compile_later, compile_now, compiler
from .precompiled import Precompilable, keep
from .reporting import decline, for_dynamo, skip
from .single_graph import compile_injecting, label_modalities
from .untracked import UntrackedTokens

_NO_VISUAL_TOKENS = "no visual tokens are injected in this graph"


def sharp(
    module: GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compile one graph of Dynamo: the function behind ``torch.compile(model, backend="sharp")``.

    Args:
        module: the graph.
        inputs: what it is about to be called with.
        options: see ``Config.parse``.
        mode: one of Inductor's, which stands for options of it; those in ``options`` come first.

    Returns:
        A function that takes the graph's inputs and returns its outputs.

    Raises:
        ValueError: for a bad option or mode, or a selector that can't be compiled.
        CannotPrune: for a graph that can't be pruned, with ``on_skip="raise"``.
        Exception: for a fault of the passes, likewise.
    """
    if transformers.prepare_graph(module.graph) or hands_over(active_backend()):
        raise TraceAgain("code that was traced is another one for this backend")
    _write_out_equal_layers(module)
    backend_id = take_backend_id(module)
    try:
        config = check(options, mode)
        graph_report = GraphReport(False, _NO_VISUAL_TOKENS)
        try:
            shown = with_injections(module)
            may_hold = _may_hold_visual_tokens(shown.graph, inputs)
        except Exception as error:
            may_hold = False
            decline(graph_report, config, error)
        if not may_hold:
            _warn_beside(report.add(graph_report), module.graph, config)
            compiled = compile_now(module, inputs, config)
            keep(module, backend_id, compiled, config)
            return compiled
        compiled = _compile(module, inputs, config, shown)
    except ShortenTraceback:
        raise
    except (ValueError, CannotPrune) as error:
        raise for_dynamo(error) from error
    keep(module, backend_id, compiled, config)
    return Precompilable(module, compiled, config, setting_of, _compile_for)


@without_gc()
def _write_out_equal_layers(module: GraphModule) -> None:
    """Give layers their nodes that Dynamo did not trace; where that can't be, have it trace them."""
    try:
        if write_out_equal_layers(module.graph):
            module.recompile()
    except NotEqual as error:
        transformers.trace_apart(error)
        raise TraceAgain(str(error)) from error


def setting_of(backend: Any) -> Config | None:
    """Return the options with which a backend of Dynamo compiles by ``sharp``; None for a backend of others.

    Raises:
        ValueError: for a bad option or mode.
    """
    arguments: dict[str, Any] = {}
    while backend is not sharp:
        if isinstance(backend, functools.partial):
            given, backend = backend.keywords, backend.func
        elif hasattr(backend, "compiler_fn"):
            given, backend = getattr(backend, "kwargs", {}), backend.compiler_fn
        else:
            return None
        if isinstance(config := given.get("config"), Config):
            return config
        arguments |= {name: given[name] for name in ("options", "mode") if name in given}
    return check(**arguments)


def _active_setting() -> Config | None:
    """Return the options of the compilation that this thread is in; None where it is not for this backend."""
    try:
        return setting_of(active_backend())
    except ValueError:  # a bad option, of which `sharp` tells
        return None


def _compile_for(module: GraphModule, backend: Any, config: Config | None, inputs: Sequence[Any]) -> Compiled:
    """Compile a graph when it runs, for another backend than it was traced for; ``config`` None where not for ours."""
    if config is None:
        return compile_later(module, backend)
    return _compile(module, inputs, config, with_injections(module), later=True)


def _may_hold_visual_tokens(graph: Graph, inputs: Sequence[Any]) -> bool:
    if find_injections(graph) or registry.find(inputs) is not None or find_annotated(inputs) is not None:
        return True
    if any(is_hidden_states(node) for node in graph.find_nodes(op="placeholder")):
        return True
    return find_unknown(graph) is not None


def _warn_beside(graph_report: GraphReport, graph: Graph, config: Config) -> None:
    """Say once that visual features go past the sequence, where they do: there is nothing to prune."""
    if (beside := UntrackedTokens(graph).beside()) is not None:
        graph_report.reason = beside
        skip(graph_report, config, may_raise=False)


def _compile(
    module: GraphModule, inputs: Sequence[Any], config: Config, shown: GraphModule, later: bool = False
) -> Compiled:
    """Compile a graph that may hold visual tokens.

    ``shown`` is a copy in which all injections can be seen. ``later`` says that it is done when the graph runs, and
    ``inputs`` are what it runs on: Dynamo has finished with the graph, and will trace again what is made of it.
    """
    linked = registry.find(inputs)
    graph = shown.graph
    injects = bool(find_injections(graph))
    label_modalities(graph)
    if injects and not injects_into_input(graph):
        return compile_injecting(module, inputs, config, later, shown)
    graph_report = GraphReport(False, _NO_VISUAL_TOKENS)
    as_it_is = functools.partial(compiler(config, inputs, later), module)
    if not injects:
        unknown = find_unknown(graph)
        linked = linked or find_annotated(inputs)
        report.add(graph_report)
        if linked is None and unknown is not None:
            graph_report.reason = unknown
            skip(graph_report, config)
        elif linked is None:
            _warn_beside(graph_report, graph, config)
        if linked is None and not any(is_hidden_states(node) for node in module.graph.find_nodes(op="placeholder")):
            return as_it_is()
    linking = LinkedGraph(module, shown, config, graph_report, injects)
    if later or linking.tail.find(inputs) is not None:
        # Prepared by the call that comes next; for other inputs when it is first needed.
        return linking
    if linked is None:
        linking.look_for_pixels(inputs)
    if linked is None or linking.prepare(*linked) is None:
        linking.compile_unlinked(inputs)
    return linking


def check(options: Mapping[str, Any] | None = None, mode: str | None = None) -> Config:
    """Return what is asked for; ``sharp`` has the arguments.

    Raises:
        ValueError: for a bad option or mode.
    """
    return Config.parse(with_mode(options, mode))


# What is compiled with this backend, by whatever door, is to reach it.
ours.register(sharp, setting_of)
dynamo.install(sharp, check)
recompile_limit.watch_limit(_active_setting)
dynamo_messages.filter_messages(lambda: _active_setting() is not None)

"""The Dynamo backend: options in, a compiled graph out.

    Dynamo's graph -> find the injection -> prune a copy (`passes.pipeline`) -> the inner backend

A graph without visual tokens goes to the inner backend untouched. One that only injects them tells the
graphs behind it where they are, and one that reads embeddings from such a graph is pruned at run time
(`LinkedGraph`). What became of each graph is in its `GraphReport`.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import (
    BackendCompilerFailed,
    ShortenTraceback,
    Unsupported,
    UserError,
    exceptions_allowed_to_be_fallback,
)
from torch.fx import Graph, GraphModule, Node

from . import dynamo_messages, recompilation, report, said
from .config import Config
from .integrations import dynamo, ours, transformers
from .integrations.tracing import TraceAgain, hands_over
from .integrations.transformers.modality import kind_of_mask
from .link import Link, Links, carrier
from .observability import artifact, count, readable
from .passes.analysis.frames import emit_frames, find_frames
from .passes.analysis.injection import (
    Injection,
    emit_masks,
    find_injections,
    find_unknown,
    injected_elements,
    injects_into_input,
    visual_mask,
)
from .passes.analysis.modality import KIND, modality_of, only
from .passes.canonicalize.flex_to_sdpa import make_traceable
from .passes.context import PruneResult
from .passes.errors import CannotPrune, SelectorError
from .passes.fx.emit import Emitter
from .passes.fx.nodes import (
    arguments,
    copy_of,
    copy_with_nodes,
    example,
    example_tensor,
    is_hidden_states,
    writes_into_inputs,
)
from .passes.fx.part import part_of
from .passes.held_positions import tell_all_positions
from .passes.pipeline import prune, too_short, with_injections
from .report import GraphReport
from .runtime import Compiled, CompiledPerSetting, PrunedGraph, active_backend
from .tail import TailGraph
from .unseen import Unseen

log = logging.getLogger(__name__)
links = Links()
_NO_VISUAL_TOKENS = "no visual tokens are injected in this graph"


def sharp(
    module: GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compiles one graph of Dynamo: the function behind ``torch.compile(model, backend="sharp")``.

    Args:
        module: the graph.
        inputs: what it is about to be called with.
        options: see `Config.parse`.
        mode: refused, it is an option of Inductor.

    Returns:
        A function that takes the graph's inputs and returns its outputs.

    Raises:
        ValueError: for a bad option, or a selector that can't be compiled.
        CannotPrune: for a graph that can't be pruned, with ``on_skip="raise"``.
        Exception: for a fault of the passes, likewise.
    """
    if transformers.prepare_graph(module.graph) or hands_over(active_backend()):
        raise TraceAgain("code that was traced is another one for this backend")
    try:
        if mode is not None:
            raise ValueError(_about_mode(mode))
        config = Config.parse(options)
        made = GraphReport(False, _NO_VISUAL_TOKENS)
        try:
            shown = with_injections(module)
            may_hold = _may_hold_visual_tokens(shown.graph, inputs)
        except Exception as error:
            may_hold = False
            _decline(made, config, error)
        if not may_hold:
            _say_beside(report.add(made), module.graph, config)
            return _inner(module, inputs, config)
        compiled = _compile(module, inputs, config, shown)
    except ShortenTraceback:
        raise
    except (ValueError, CannotPrune) as error:
        raise _for_dynamo(error) from error
    return CompiledPerSetting(compiled, config, setting_of, functools.partial(_compile_for, module))


def setting_of(backend: Any) -> Config | None:
    """The options with which a backend of Dynamo compiles by `sharp`; None for a backend of others.

    Raises:
        ValueError: for a bad option.
    """
    options: Mapping[str, Any] | None = None
    while backend is not sharp:
        if isinstance(backend, functools.partial):
            given, backend = backend.keywords, backend.func
        elif hasattr(backend, "compiler_fn"):
            given, backend = getattr(backend, "kwargs", {}), backend.compiler_fn
        else:
            return None
        if isinstance(config := given.get("config"), Config):
            return config
        options = given.get("options", options)
    return Config.parse(options)


def _active_setting() -> Config | None:
    """The options of the compilation that this thread is in; None where it is not for this backend."""
    try:
        return setting_of(active_backend())
    except ValueError:  # a bad option, of which `sharp` tells
        return None


recompilation.watch_limit(_active_setting)
dynamo_messages.filter_messages(lambda: _active_setting() is not None)


def _compile_for(module: GraphModule, backend: Any, config: Config | None, inputs: Sequence[Any]) -> Compiled:
    """Compiles a graph when it runs, for another backend than it was traced for; `config` None where not for ours."""
    if config is None:
        return _compile_later(module, backend)
    return _compile(module, inputs, config, with_injections(module), later=True)


def _may_hold_visual_tokens(graph: Graph, inputs: Sequence[Any]) -> bool:
    if find_injections(graph) or links.find(inputs) is not None or said.find(inputs) is not None:
        return True
    if any(is_hidden_states(node) for node in graph.find_nodes(op="placeholder")):
        return True
    return find_unknown(graph) is not None


def _say_beside(made: GraphReport, graph: Graph, config: Config) -> None:
    """Says once that visual features go past the sequence, where they do: there is nothing to prune."""
    if (beside := Unseen(graph).beside()) is not None:
        made.reason = beside
        _skip(made, config, may_raise=False)


def _compile(
    module: GraphModule, inputs: Sequence[Any], config: Config, shown: GraphModule, later: bool = False
) -> Compiled:
    """Compiles a graph that may hold visual tokens.

    `shown` is a copy in which all injections can be seen. `later` says that it is done when the graph runs, and
    `inputs` are what it runs on: Dynamo has finished with the graph, and will trace again what is made of it.
    """
    linked = links.find(inputs)
    graph = shown.graph
    injects = bool(find_injections(graph))
    _label(graph)
    if injects and not injects_into_input(graph):
        return _compile_injecting(module, inputs, config, later, shown)
    made = GraphReport(False, _NO_VISUAL_TOKENS)
    as_it_is = functools.partial(_how(config, inputs, later), module)
    if not injects:
        unknown = find_unknown(graph)
        linked = linked or said.find(inputs)
        report.add(made)
        if linked is None and unknown is not None:
            made.reason = unknown
            _skip(made, config)
            return as_it_is()
        if linked is None:
            _say_beside(made, graph, config)
        if linked is None and not any(is_hidden_states(node) for node in module.graph.find_nodes(op="placeholder")):
            return as_it_is()
    linking = LinkedGraph(module, shown, config, made, injects)
    if later or linking.tail.find(inputs) is not None:
        # Prepared by the call that comes next; for other inputs when it is first needed.
        return linking
    if linked is None:
        linking.look_for_pixels(inputs)
    if linked is None or linking.prepare(*linked) is None:
        linking.compile_unlinked(inputs)
    return linking


def _compile_injecting(
    module: GraphModule,
    inputs: Sequence[Any],
    config: Config,
    later: bool = False,
    shown: GraphModule | None = None,
) -> Compiled:
    """A graph that injects visual features: prunes it, or has it tell the graphs behind it."""
    began = time.perf_counter()
    if shown is None:
        shown = with_injections(module)
        _label(shown.graph)
    how = _how(config, inputs, later)
    made, place = GraphReport(False, ""), None
    try:
        injections = _chosen(shown.graph, config)
        attempts = (prune(shown, injection, config, _ended(module), trace=not later) for injection in injections)
        pruned = next((attempt for attempt in attempts if attempt is not None), None)
        if injections and pruned is None:
            copy, nodes = copy_with_nodes(shown)
            place = _return_injection(Emitter(copy, trace=not later), injections[-1].among(nodes), config)
    except Exception as error:
        _decline(report.add(made), config, error)
        return how(module)
    report.add(made)
    if not injections:
        made.reason = f"features are injected in this graph that modality={config.modality!r} keeps as text is"
        return how(module)
    if pruned is None:
        assert place is not None
        return _publishing(how(copy), place, made, config)
    found = f"visual features are injected in this graph, before a decoder of {pruned.num_layers} layers"
    made.pruned, made.reason = True, found
    _describe(made, pruned, began)
    for name, length in pruned.lengths.items():
        setattr(made, name, str(example(length)) if isinstance(length, Node) else length)
    _log_graphs(made, module, pruned.module)
    return _run_pruned(how(pruned.module), made, pruned, config, module)


def _chosen(graph: Graph, config: Config, earlier: Injection | None = None) -> list[Injection]:
    """The injections of a graph, of the features that are to be pruned."""
    found = (only(injection, config.modality) for injection in find_injections(graph, earlier))
    return [injection for injection in found if injection is not None]


def _label(graph: Graph) -> None:
    """Notes the modality of the features that a graph injects, while the model's call is under way."""
    for injection in find_injections(graph):
        for mask, features in zip(injection.masks, injection.features, strict=True):
            kind = kind_of_mask(mask) if isinstance(mask, Node) else None
            if kind not in ("visual", "audio"):
                kind = modality_of(features) or kind
            features.meta[KIND] = kind


def _how(config: Config, inputs: Sequence[Any], later: bool) -> Callable[[GraphModule], Compiled]:
    """What compiles a graph for the inner backend: now, on the inputs of Dynamo's, or when it first runs."""
    inner = functools.partial(_inner, config=config)
    return functools.partial(_compile_later, backend=inner) if later else functools.partial(inner, inputs=inputs)


def _run_pruned(
    compiled: Compiled, made: GraphReport, pruned: PruneResult, config: Config, module: GraphModule
) -> PrunedGraph:
    """The pruned copy of a graph, ready to run; for a call that can't be pruned the graph itself, where that may be.

    A graph that has written into its inputs can't run again: the text of its rows is counted before it runs.
    """
    may_run_unpruned, count_text, unpruned = config.on_skip != "raise", None, None
    text, length = _text_and_length(pruned)
    if may_run_unpruned and not _is_one_row(text) and writes_into_inputs(module.graph):
        count_text = part_of(pruned.module, (text, length))
        may_run_unpruned = count_text is not None
    if may_run_unpruned:
        unpruned = _compile_later(module, functools.partial(_inner, config=config))
    return PrunedGraph(compiled, made, pruned, (module, pruned.module), count_text, unpruned, config.on_skip == "warn")


def _is_one_row(text: Node) -> bool:
    """Whether `text` ``[B]`` is surely of one row, which has all visual tokens itself."""
    value = example_tensor(text)
    return value is not None and isinstance(value.shape[0], int) and value.shape[0] == 1


def _text_and_length(pruned: PruneResult) -> tuple[Node, int | Node]:
    """The text tokens of each row ``[B]``, and S', in a pruned graph."""
    names = pruned.aux_outputs
    outputs = arguments(pruned.module.graph.output_node())[0][-len(names) :]
    return outputs[names.index("text")], pruned.lengths["pruned_length"]


def _compile_later(module: GraphModule, backend: Callable[..., Compiled]) -> Compiled:
    """A graph that Dynamo traces once more when it first runs, for another backend."""
    symbolic = any(isinstance(example(node), SymInt) for node in module.graph.find_nodes(op="placeholder"))
    lock = threading.RLock()

    # Dynamo never traces code that is made while it compiles, and compiling is where we are: the code of the
    # module has to be made by the first call.
    @functools.cache
    def compiled() -> Compiled:
        traceable = copy_of(module)
        make_traceable(traceable)
        return torch.compile(traceable, backend=backend, dynamic=True if symbolic else None)

    def run(*args: Any) -> Any:
        with lock:
            once = compiled()
        return once(*args)

    return run


def _return_injection(emit: Emitter, injection: Injection, config: Config) -> int:
    """Lets a graph that injects features, and has no decoder, return where they are.

    Returns:
        The place of the embeddings among its results.

    Raises:
        CannotPrune: where it does not return them.
    """
    copy = emit.module
    output = copy.graph.output_node()
    outputs = list(arguments(output)[0])
    if injection.embeddings not in outputs:
        raise CannotPrune(
            "visual features are injected in this graph, but it has no decoder and does not return the embeddings "
            "as they are: the graph that reads them can't be told where they are"
        )
    with emit.before(output):
        injection = emit_masks(emit, injection)
        frames = find_frames(injection, None, config.tokens_per_frame, emit)
        is_visual = emit(visual_mask, *injection.masks)
        told = [emit_frames(emit, frames, injection, is_visual), injected_elements(emit, injection)]
    output.args = ((*outputs, *told),)
    copy.recompile()
    return outputs.index(injection.embeddings)


def _publishing(compiled: Compiled, place: int, made: GraphReport, config: Config) -> Compiled:
    """A graph that returns the embeddings as result `place`: its run publishes where visual features are in them."""
    made.reason = "visual features are injected in this graph, a later one has the decoder"

    def never_read() -> None:
        made.reason = (
            "visual features were injected, but no compiled graph with a decoder read them: it ran eagerly, or on a "
            "changed copy of the embeddings"
        )
        _skip(made, config, may_raise=False)

    def run(*args: Any) -> Sequence[Any]:
        *results, frame, elements = compiled(*args)
        links.publish(results[place], frame, int(elements), never_read)
        return tuple(results)

    return run


class LinkedGraph:
    """A graph that takes embeddings as an input: pruned when an earlier graph injected features into them.

    Whether they hold any is known at run time only, call by call, from the tensor itself (`link.Links`).
    How many visual tokens there are is no input of Dynamo's graph, so its guards can't speak of it: the
    rewritten graph gets two inputs more, the frames and a tensor whose size is the number of elements,
    and Dynamo compiles it in its own right, with guards on all of them. The same graph without visual tokens
    runs unpruned; that too is compiled when it is first needed.

    It may inject features itself, into what an earlier graph did (videos after images): then it is pruned for both, or
    hands both on.

    Attributes:
        unlinked: the graph for inputs without visual tokens, compiled.
        linked: for each input that held some, the graph for these; None where it can't be pruned.
        least: for each of these inputs, the fewest tokens that may be left of a row.
        takes_over: whether visual tokens are pruned here, handed on, or known to stay.
    """

    def __init__(
        self, module: GraphModule, shown: GraphModule, config: Config, made: GraphReport, injects: bool
    ) -> None:
        self.module, self.shown, self.config, self.report, self.injects = module, shown, config, made, injects
        self.unlinked: Compiled | None = None
        self.linked: dict[int, Compiled | None] = {}
        self.least: dict[int, int] = {}
        self.takes_over = False
        self.said_missed = False
        self.unseen = Unseen(module.graph)
        # Calls of several threads may need the same graph at once; its compilation may need it too.
        self.lock = threading.RLock()
        self.tail = TailGraph(module, self._compile, functools.partial(_decline, made, config))

    def __call__(self, *args: Any) -> Sequence[Any]:
        """Runs the graph on inputs like those it was traced with."""
        states = self.tail.find(args)
        if states is not None:
            with self.lock:
                prepared = self.tail.prepare(*states)
            if prepared is not None:
                return prepared(args)
        linked = links.find(args) or (None if self.injects else said.find(args))
        if linked is not None:
            place, link = linked
            compiled = self.prepare(place, link)
            if compiled is not None:
                elements = carrier(link.elements, link.frame)
                torch._dynamo.maybe_mark_dynamic(elements, 0)
                results = compiled(*args, link.frame, elements)
                if self.report.pruned:
                    self._measure()
                return results
        else:
            self.look_for_pixels(args)
        with self.lock:
            if self.unlinked is None:
                backend = _compile_injecting if self.injects else _inner
                self.unlinked = _compile_later(self.module, functools.partial(backend, config=self.config))
        return self.unlinked(*args)

    def compile_unlinked(self, inputs: Sequence[Any]) -> None:
        """Compiles the graph for inputs without visual tokens from the graph that Dynamo made, on `inputs`."""
        if self.injects:
            self.unlinked = _compile_injecting(self.module, inputs, self.config, shown=self.shown)
        else:
            self.unlinked = _inner(self.module, inputs, self.config)

    def look_for_pixels(self, inputs: Sequence[Any]) -> None:
        """Says once that a decoder may be called with visual features of which no graph told."""
        if self.said_missed or self.injects:
            return
        reason = self.unseen.reason(inputs)
        if reason is not None:
            self.said_missed, self.report.reason = True, reason
            _skip(self.report, self.config, may_raise=False)

    def prepare(self, place: int, link: Link) -> Compiled | None:
        """The graph pruned for embeddings in input `place`; None where it has no decoder or can't be.

        Raises:
            CannotPrune: where it can't be, with ``on_skip="raise"``.
        """
        with self.lock:
            if place not in self.linked:
                if self.injects and not self.linked:
                    report.add(self.report)
                try:
                    self.linked[place] = self._prune(place)
                except Exception as error:
                    self.linked[place], self.takes_over, link.read = None, True, True
                    _decline(self.report, self.config, error)
            link.read = link.read or self.takes_over
            length = self._length_left(place, link) if self.least.get(place, 1) > 1 else None
            if length is not None and length < self.least[place]:
                self.report.reason = too_short(length, self.least[place])
                _skip(self.report, self.config)
                return None
            return self.linked[place]

    def _length_left(self, place: int, link: Link) -> int | None:
        """S' of a call; None where the graph injects features of its own as well."""
        rows, length = link.frame.shape
        channels = example(self.module.graph.find_nodes(op="placeholder")[place]).shape[2]
        if self.injects or not isinstance(channels, int):
            return None
        visual = link.elements // (rows * channels)
        return length - visual + self.config.cuts[-1].kept(visual)

    def _prune(self, place: int) -> Compiled | None:
        began = time.perf_counter()
        copy = copy_of(self.shown)
        placeholders = copy.graph.find_nodes(op="placeholder")
        with copy.graph.inserting_after(placeholders[-1]):
            elements = copy.graph.placeholder("injected_elements")
            frame = copy.graph.placeholder("frame")
        emit = Emitter(copy, trace=False)
        with emit.before(frame.next):
            mask = emit(_in_a_frame, frame)
        injection = Injection(placeholders[place], (mask,), (elements,), frame)
        earlier = injection
        elements.meta[KIND] = self.config.modality
        injection = next(each for each in _chosen(copy.graph, self.config, earlier) if mask in each.masks)
        pruned = prune(copy, injection, self.config, _ended(self.module), trace=False)
        if pruned is None and injection is not earlier:
            self.takes_over = True
            place = _return_injection(emit, injection, self.config)
            return _publishing(self._compile(copy), place, self.report, self.config)
        if pruned is None:
            self.report.reason = "visual features come in from an earlier graph, but this one has no decoder"
            return None
        self.takes_over, self.least[place] = True, pruned.least
        self.report.pruned = True
        self.report.reason = f"an earlier graph injected visual features for this decoder of {pruned.num_layers} layers"
        _describe(self.report, pruned, began)
        _log_graphs(self.report, self.module, pruned.module)
        return _run_pruned(self._compile(pruned.module), self.report, pruned, self.config, self.module)

    def _compile(self, module: GraphModule) -> Compiled:
        return _compile_later(module, functools.partial(_inner, config=self.config))

    def _measure(self) -> None:
        """Reports the lengths of the last call."""
        frame = self.report.frame
        assert frame is not None
        rows, length = frame.shape
        visual = int((frame >= 0).sum()) // rows
        kept = self.config.cuts[-1].kept(visual)
        self.report.sequence_length, self.report.visual_tokens = length, visual
        self.report.kept_tokens, self.report.pruned_length = kept, length - visual + kept


def _describe(made: GraphReport, pruned: PruneResult, began: float) -> None:
    """Reports what was done to a graph, since the time `began`."""
    if pruned.remark:
        made.reason = f"{made.reason}; {pruned.remark}"
    made.cuts, made.layer, made.num_layers = pruned.cuts, pruned.cuts[-1].layer, pruned.num_layers
    made.hoisted, made.passes_s = pruned.hoisted, time.perf_counter() - began


def _in_a_frame(frame: Tensor) -> Tensor:
    return (frame >= 0).unsqueeze(-1)


def _inner(module: GraphModule, inputs: Sequence[Any], config: Config) -> Compiled:
    """Hands a graph over to the backend that compiles it."""
    module = tell_all_positions(module)
    backend: Callable[..., Compiled] = lookup_backend(config.inner)
    if config.inductor:
        return backend(module, inputs, config_patches=dict(config.inductor))
    return backend(module, inputs)


def _about_mode(mode: str) -> str:
    """What to write in place of a mode of Inductor's."""
    from torch._inductor import list_mode_options

    known = list_mode_options()
    if mode not in known:
        return f"mode={mode!r} is none of Inductor's modes: {', '.join(map(repr, known))}"
    return f'mode={mode!r} is no option of backend="sharp": write options={{"inductor": {known[mode]}}}, the same to it'


def _ended(module: GraphModule) -> Any:
    """Why Dynamo ended a graph where it did: it leaves that on its module."""
    return getattr(module, "compile_subgraph_reason", None)


def _decline(made: GraphReport, config: Config, error: Exception) -> None:
    """Does what the user asked for about a graph that the passes could not prune, because of `error`.

    An exception that no pass means to raise is a fault of ours, and no reason to end the user's call.

    Raises:
        Exception: `error`, for a selector that can't be compiled and with ``on_skip="raise"``.
    """
    made.reason = str(error)
    if isinstance(error, SelectorError):
        raise error
    if isinstance(error, CannotPrune):
        _skip(made, config)
        return
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    made.reason = (
        f"a fault of sharp_compile ({what}), please report this line; the log of the module sharp_compile has the "
        "traceback at level DEBUG"
    )
    log.debug("a fault in the passes", exc_info=error)
    if config.on_skip == "raise":
        raise _for_dynamo(error) from error
    _skip(made, config)


def _skip(made: GraphReport, config: Config, may_raise: bool = True) -> None:
    """Does what the user asked for about a graph with visual tokens that runs unpruned."""
    log.info("not pruned: %s", made.reason)
    count("declined")
    artifact("decision", lambda: f"not pruned: {made.reason}")
    if config.on_skip == "raise" and may_raise:
        raise CannotPrune(made.reason)
    if config.on_skip != "silent":
        warnings.warn(f"sharp_compile runs a graph unpruned: {made.reason}", stacklevel=2)


def _log_graphs(made: GraphReport, before: GraphModule, after: GraphModule) -> None:
    decision = f"pruned behind layer {made.layer} of {made.num_layers}: {made.reason}"
    log.info("%s", decision)
    count("pruned")
    artifact("decision", lambda: decision)
    for name, module in (("before", before), ("after", after)):
        if log.isEnabledFor(logging.DEBUG):
            log.debug("graph %s pruning:\n%s", name, readable(module))
        artifact(name, functools.partial(readable, module))


def _for_dynamo(error: Exception) -> Exception:
    """`error` as Dynamo lets it pass, and as who documents or expects it can catch it.

    Dynamo wraps most errors of a backend, and takes some for breaks of the graph, in silence.
    """
    kind = type(error)
    breaks = isinstance(error, (Unsupported, UserError, *exceptions_allowed_to_be_fallback))
    try:
        if not breaks:
            shown = type(kind.__name__, (ShortenTraceback, kind), {"__module__": kind.__module__})
            return shown(*error.args, first_useful_frame=None)
    except TypeError:  # a class that can't be combined or made from its arguments
        pass
    return BackendCompilerFailed(sharp, error, None)


# What is compiled with this backend, by whatever door, is to reach it.
ours.register(sharp, setting_of)
dynamo.install(sharp)

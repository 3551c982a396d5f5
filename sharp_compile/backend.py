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
from torch._dynamo.exc import ShortenTraceback
from torch.fx import GraphModule, Node

from . import report, said
from .config import Config
from .flops import count_flops
from .integrations import transformers
from .integrations.transformers import prompt
from .link import Link, Links, carrier
from .passes.decoder import holds_decoder
from .passes.emit import Emitter
from .passes.errors import CannotPrune
from .passes.flex_attention import make_traceable
from .passes.frames import emit_frames, find_frames
from .passes.injection import Injection, find_injections, injects_into_input
from .passes.nodes import arguments, example, is_hidden_states
from .passes.pipeline import Pruned, copy_of, injected_elements, kept_at, prune
from .passes.select import visual_mask
from .report import GraphReport
from .tail import TailGraph, hand_on

Compiled = Callable[..., Any]

log = logging.getLogger("sharp_compile")
links = Links()

# The attention functions have to be in place before Dynamo traces through them. It looks this module up when
# `torch.compile` is called, with the model there and so transformers loaded.
transformers.install()


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
        ValueError: for a bad option.
        CannotPrune: for a graph that can't be pruned, with ``on_skip="raise"``.
    """
    try:
        if mode is not None:
            raise ValueError(f'mode={mode!r} is no option of backend="sharp": give options={{"inductor": {{...}}}}')
        return _compile(module, inputs, Config.parse(options))
    except (ValueError, CannotPrune) as error:
        raise _for_dynamo(error) from error


def _compile(module: GraphModule, inputs: Sequence[Any], config: Config) -> Compiled:
    linked = links.find(inputs)
    injects = bool(find_injections(module.graph))
    if injects and not injects_into_input(module.graph):
        return _compile_injecting(module, inputs, config)
    made = GraphReport(False, "no visual tokens are injected in this graph")
    if not injects:
        linked = linked or said.find(inputs)
        report.add(made)
        if linked is None and not any(is_hidden_states(node) for node in module.graph.find_nodes(op="placeholder")):
            return _inner(module, inputs, config)
    graph = LinkedGraph(module, config, made, injects)
    if graph.tail.find(inputs) is not None:
        # Prepared by the call that Dynamo makes next; for other inputs when it is first needed.
        return graph
    if linked is None or graph.prepare(*linked) is None:
        graph.compile_unlinked(inputs)
    return graph


def _compile_injecting(module: GraphModule, inputs: Sequence[Any], config: Config) -> Compiled:
    """A graph that injects visual features: prunes it, or has it tell the graphs behind it."""
    began = time.perf_counter()
    copy = copy_of(module)
    injections = find_injections(copy.graph)
    try:
        attempts = (prune(copy, injection, config, _ended(module)) for injection in injections)
        pruned = next((attempt for attempt in attempts if attempt is not None), None)
        if pruned is None:
            made = GraphReport(False, "")
            compile_copy = functools.partial(_inner, inputs=inputs, config=config)
            compiled = _compile_publishing(Emitter(copy, trace=True), injections[-1], config, made, compile_copy)
            report.add(made)
            return compiled
    except CannotPrune as reason:
        made = report.add(GraphReport(False, str(reason)))
        _skip(made, config)
        return _inner(module, inputs, config)
    how = f"visual features are injected in this graph, before a decoder of {pruned.num_layers} layers"
    made = report.add(GraphReport(True, how))
    _describe(made, pruned, began)
    for name, length in pruned.lengths.items():
        setattr(made, name, str(example(length)) if isinstance(length, Node) else length)
    _log_graphs(made, module, copy)
    return _telling(_inner(copy, inputs, config), made, pruned, (module, copy))


def _compile_publishing(
    emit: Emitter,
    injection: Injection,
    config: Config,
    made: GraphReport,
    compile_copy: Callable[[GraphModule], Compiled],
) -> Compiled:
    """A graph that injects features and has no decoder: its run says where they are in what it returns."""
    copy = emit.module
    output = copy.graph.output_node()
    outputs = list(arguments(output)[0])
    if injection.embeddings not in outputs:
        raise CannotPrune(
            "visual features are injected in this graph, but it has no decoder and does not return the embeddings "
            "as they are: the graph that reads them can't be told where they are"
        )
    place = outputs.index(injection.embeddings)
    with emit.before(output):
        frames = find_frames(injection, None, config.tokens_per_frame, emit)
        is_visual = emit(visual_mask, *injection.masks)
        told = [emit_frames(emit, frames, injection, is_visual), injected_elements(emit, injection)]
    output.args = ((*outputs, *told),)
    copy.recompile()
    made.reason = "visual features are injected in this graph, a later one has the decoder"
    compiled = compile_copy(copy)

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
        takes_over: whether visual tokens are pruned here, handed on, or known to stay.
    """

    def __init__(self, module: GraphModule, config: Config, made: GraphReport, injects: bool) -> None:
        self.module, self.config, self.report, self.injects = module, config, made, injects
        self.unlinked: Compiled | None = None
        self.linked: dict[int, Compiled | None] = {}
        self.takes_over = False
        self.said_missed = False
        # Calls of several threads may need the same graph at once; its compilation may need it too.
        self.lock = threading.RLock()
        self.tail = TailGraph(module, self._compile)

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
                self.unlinked = self._compile(self.module, _compile_injecting if self.injects else _inner)
        return self.unlinked(*args)

    def compile_unlinked(self, inputs: Sequence[Any]) -> None:
        """Compiles the graph for inputs without visual tokens from the graph that Dynamo made, on `inputs`."""
        self.look_for_pixels(inputs)
        self.unlinked = (_compile_injecting if self.injects else _inner)(self.module, inputs, self.config)

    @functools.cached_property
    def may_be_missed(self) -> bool:
        """Whether there is a decoder in this graph that could have been pruned."""
        return holds_decoder(self.module.graph)

    def look_for_pixels(self, inputs: Sequence[Any]) -> None:
        """Says once that a decoder is called with visual features of which no graph told."""
        if not self.said_missed and not self.injects and prompt.is_prompt_with_pixels(inputs) and self.may_be_missed:
            self.said_missed = True
            self.report.reason = (
                "visual features were injected by code that Dynamo ran eagerly, so that no graph shows where they are; "
                "sharp_compile.compile(model) tells it, or call the model inside sharp_compile.visual_tokens(is_visual)"
            )
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
                except CannotPrune as reason:
                    self.linked[place], self.takes_over, link.read = None, True, True
                    self.report.reason = str(reason)
                    _skip(self.report, self.config)
            link.read = link.read or self.takes_over
            return self.linked[place]

    def _prune(self, place: int) -> Compiled | None:
        began = time.perf_counter()
        copy = copy_of(self.module)
        placeholders = copy.graph.find_nodes(op="placeholder")
        with copy.graph.inserting_after(placeholders[-1]):
            elements = copy.graph.placeholder("injected_elements")
            frame = copy.graph.placeholder("frame")
        emit = Emitter(copy, trace=False)
        with emit.before(frame.next):
            mask = emit(_in_a_frame, frame)
        injection = Injection(placeholders[place], (mask,), (elements,), frame)
        earlier = injection
        injection = next(each for each in find_injections(copy.graph, earlier) if mask in each.masks)
        pruned = prune(copy, injection, self.config, _ended(self.module), trace=False)
        if pruned is None and injection is not earlier:
            self.takes_over = True
            return _compile_publishing(emit, injection, self.config, self.report, self._compile)
        if pruned is None:
            self.report.reason = "visual features come in from an earlier graph, but this one has no decoder"
            return None
        self.takes_over = True
        self.report.pruned = True
        self.report.reason = f"an earlier graph injected visual features for this decoder of {pruned.num_layers} layers"
        _describe(self.report, pruned, began)
        _log_graphs(self.report, self.module, copy)
        return _telling(self._compile(copy), self.report, pruned, (self.module, copy))

    def _compile(self, module: GraphModule, compile_traced: Callable[..., Compiled] | None = None) -> Compiled:
        symbolic = any(isinstance(example(node), SymInt) for node in module.graph.find_nodes(op="placeholder"))
        inner = functools.partial(compile_traced or _inner, config=self.config)

        # Dynamo never traces code that is made while it compiles, and compiling is where we are: the code of the
        # module has to be made by the first call.
        @functools.cache
        def compiled() -> Compiled:
            traceable = copy_of(module)
            make_traceable(traceable)
            return torch.compile(traceable, backend=inner, dynamic=True if symbolic else None)

        def run(*args: Any) -> Any:
            with self.lock:
                once = compiled()
            return once(*args)

        return run

    def _measure(self) -> None:
        """Reports the lengths of the last call."""
        frame = self.report.frame
        assert frame is not None
        rows, length = frame.shape
        visual = int((frame >= 0).sum()) // rows
        kept = self.config.cuts[-1].kept(visual)
        self.report.sequence_length, self.report.visual_tokens = length, visual
        self.report.kept_tokens, self.report.pruned_length = kept, length - visual + kept


def _describe(made: GraphReport, pruned: Pruned, began: float) -> None:
    """Reports what was done to a graph, since the time `began`."""
    if pruned.remark:
        made.reason = f"{made.reason}; {pruned.remark}"
    made.cuts, made.layer, made.num_layers = pruned.cuts, pruned.cuts[-1].layer, pruned.num_layers
    made.hoisted, made.passes_s = pruned.hoisted, time.perf_counter() - began


def _in_a_frame(frame: Tensor) -> Tensor:
    return (frame >= 0).unsqueeze(-1)


def _telling(
    compiled: Compiled, made: GraphReport, pruned: Pruned, graphs: tuple[GraphModule, GraphModule]
) -> Compiled:
    """A pruned graph as Dynamo expects it: what it returns on top, by the names ``told``, goes to the report.

    `graphs` are the ones before and after pruning, for those who want to know what they take.
    """
    told, ended = pruned.told, _ended(graphs[0])
    broke = ended is not None and ended.graph_break

    def run(*args: Any) -> Sequence[Any]:
        results = compiled(*args)
        extra = dict(zip(told, results[-len(told) :], strict=True))
        text, kept = extra.pop("text"), extra["kept"]
        stages = {stage: extra.pop(kept_at(stage), kept) for stage in range(1, len(pruned.cuts) + 1)}
        # Meta tensors have shapes and no data to check.
        most = 0 if text.is_meta else int(text.max())
        if most > kept.shape[1]:
            row = int(text.argmax())
            raise ValueError(
                f"row {row} of the batch has {most} text tokens, but only {kept.shape[1]} positions are kept: its "
                "visual tokens and padding are fewer than what is dropped of every row. The batch mixes videos with "
                "rows of little or no video; run those apart, or with a higher retention"
            )
        report.keep(made, **{name: tensor.clone() for name, tensor in extra.items()})
        if report.flops_wanted():
            made.flops = count_flops(graphs[0], args), count_flops(graphs[1], args)
        length = extra["frame"].shape[1]
        return tuple(hand_on(results[: -len(told)], pruned.returned, pruned.states, stages, length, broke))

    return run


def _inner(module: GraphModule, inputs: Sequence[Any], config: Config) -> Compiled:
    """Hands a graph over to the backend that compiles it."""
    backend: Callable[..., Compiled] = lookup_backend(config.inner)
    if config.inductor:
        return backend(module, inputs, config_patches=dict(config.inductor))
    return backend(module, inputs)


def _ended(module: GraphModule) -> Any:
    """Why Dynamo ended a graph where it did: it leaves that on its module."""
    return getattr(module, "compile_subgraph_reason", None)


def _skip(made: GraphReport, config: Config, may_raise: bool = True) -> None:
    """Does what the user asked for about a graph with visual tokens that runs unpruned."""
    log.info("not pruned: %s", made.reason)
    if config.on_skip == "raise" and may_raise:
        raise CannotPrune(made.reason)
    if config.on_skip != "silent":
        warnings.warn(f"sharp_compile runs a graph unpruned: {made.reason}", stacklevel=2)


def _log_graphs(made: GraphReport, before: GraphModule, after: GraphModule) -> None:
    log.info("pruned behind layer %s of %s: %s", made.layer, made.num_layers, made.reason)
    if log.isEnabledFor(logging.DEBUG):
        for name, module in (("before", before), ("after", after)):
            log.debug("graph %s pruning:\n%s", name, module.print_readable(print_output=False))


def _for_dynamo(error: Exception) -> Exception:
    """`error` as Dynamo lets it pass: others it wraps, and the user could not catch what is documented."""
    kind = type(type(error).__name__, (ShortenTraceback, type(error)), {"__module__": type(error).__module__})
    return kind(*error.args, first_useful_frame=None)

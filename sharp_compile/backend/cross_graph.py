"""A graph that takes embeddings of an earlier graph: pruned at run time, when those hold visual features."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .. import report
from ..integrations.transformers.flash_attention import runs_flash_attention
from ..options import Config
from ..passes.analysis.dataflow import build_dataflow
from ..passes.analysis.injection import Injection
from ..passes.analysis.modality import KIND
from ..passes.errors import CannotPrune
from ..passes.fx.emit import Emitter
from ..passes.fx.nodes import copy_of, example_value
from ..passes.pipeline import prune, too_short
from ..report import GraphReport
from ..tensor_records import as_size_tensor
from .injection_registry import InjectionRecord, find_annotated, registry, return_injection
from .inner import Compiled, compile_later, compile_now
from .reporting import decline, describe, log_pruned, skip
from .single_graph import (
    compile_injecting,
    injections_to_prune,
    reason_of_end,
    run_pruned,
    telling_later_graphs,
)
from .tail_graph import TailGraph
from .untracked import UntrackedTokens


class LinkedGraph:
    """A graph that takes embeddings as an input: pruned when an earlier graph injected features into them.

    Whether they hold any is known at run time only, call by call, from the tensor itself (``injection_registry``).
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
        self, module: GraphModule, shown: GraphModule, config: Config, graph_report: GraphReport, injects: bool
    ) -> None:
        self.module, self.shown, self.config, self.report, self.injects = module, shown, config, graph_report, injects
        self.unlinked: Compiled | None = None
        self.linked: dict[int, Compiled | None] = {}
        self.least: dict[int, int] = {}
        self.takes_over = False
        self.warned_untracked = False
        self.untracked = UntrackedTokens(module.graph)
        # Calls of several threads may need the same graph at once; its compilation may need it too.
        self.lock = threading.RLock()
        self.tail = TailGraph(module, self._compile, functools.partial(decline, graph_report, config))

    def __call__(self, *args: Any) -> Sequence[Any]:
        """Run the graph on inputs like those it was traced with."""
        states = self.tail.find(args)
        if states is not None:
            with self.lock:
                prepared = self.tail.prepare(*states)
            if prepared is not None:
                return prepared(args)
        linked = registry.find(args) or (None if self.injects else find_annotated(args))
        if linked is not None:
            place, record = linked
            compiled = self.prepare(place, record)
            if compiled is not None:
                elements = as_size_tensor(record.elements, record.frame)
                torch._dynamo.maybe_mark_dynamic(elements, 0)
                results: Sequence[Any] = compiled(*args, record.frame, elements)
                return results
        else:
            self.look_for_pixels(args)
        with self.lock:
            if self.unlinked is None:
                backend = compile_injecting if self.injects else compile_now
                self.unlinked = compile_later(self.module, functools.partial(backend, config=self.config))
        return self.unlinked(*args)

    def compile_unlinked(self, inputs: Sequence[Any]) -> None:
        """Compile the graph for inputs without visual tokens from the graph that Dynamo made, on ``inputs``."""
        if self.injects:
            self.unlinked = compile_injecting(self.module, inputs, self.config, shown=self.shown)
        else:
            self.unlinked = compile_now(self.module, inputs, self.config)

    def look_for_pixels(self, inputs: Sequence[Any]) -> None:
        """Say once that a decoder may be called with visual features of which no graph told."""
        if self.warned_untracked or self.injects:
            return
        reason = self.untracked.reason(inputs)
        if reason is not None:
            self.warned_untracked, self.report.reason = True, reason
            skip(self.report, self.config, may_raise=False)

    def prepare(self, place: int, record: InjectionRecord) -> Compiled | None:
        """Return the graph pruned for embeddings in input ``place``; None where it has no decoder or can't be.

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
                    self.linked[place], self.takes_over, record.read = None, True, True
                    decline(self.report, self.config, error)
            record.read = record.read or self.takes_over
            length = self._length_left(place, record) if self.least.get(place, 1) > 1 else None
            if length is not None and length < self.least[place]:
                self.report.reason = too_short(length, self.least[place])
                skip(self.report, self.config)
                return None
            return self.linked[place]

    def _length_left(self, place: int, record: InjectionRecord) -> int | None:
        """S' of a call; None where the graph injects features of its own as well."""
        batch, length = record.frame.shape
        channels = example_value(self.module.graph.find_nodes(op="placeholder")[place]).shape[2]
        if self.injects or not isinstance(channels, int):
            return None
        visual = record.elements // (batch * channels)
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
        earlier = Injection(placeholders[place], (mask,), (elements,), frame)
        elements.meta[KIND] = self.config.modality
        injection = next(each for each in injections_to_prune(copy.graph, self.config, earlier) if mask in each.masks)
        pruned = prune(copy, injection, self.config, reason_of_end(self.module), trace=False)
        if pruned is None and injection.embeddings is not earlier.embeddings:
            self.takes_over = True
            place = return_injection(emit, injection, self.config.tokens_per_frame)
            return telling_later_graphs(self._compile(copy), place, self.report, self.config)
        if pruned is None and runs_flash_attention() and len(build_dataflow(copy.graph, earlier.embeddings)) > 1:
            raise CannotPrune("the decoder's layers begin in this graph, and it has none of their attention")
        if pruned is None:
            self.report.reason = "visual features come in from an earlier graph, but this one has no decoder"
            return None
        self.takes_over, self.least[place] = True, pruned.least
        found = f"an earlier graph injected visual features for this decoder of {pruned.num_layers} layers"
        describe(self.report, pruned, began, found)
        log_pruned(self.report, self.module, pruned.module)
        return run_pruned(self._compile(pruned.module), self.report, pruned, self.config, self.module)

    def _compile(self, module: GraphModule) -> Compiled:
        return compile_later(module, functools.partial(compile_now, config=self.config))


def _in_a_frame(frame: Tensor) -> Tensor:
    return (frame >= 0).unsqueeze(-1)

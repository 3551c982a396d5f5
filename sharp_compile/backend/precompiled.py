"""Compiled graphs that outlast their process: what PyTorch's precompilation keeps of them.

``torch._dynamo.config.caching_precompile`` and ``aot_compile`` write down what Dynamo and its backend made, and another
process runs it without either. Of a pruned graph that is the compiled one, what to do with its results, and the graph
as it was, for a call that can't be pruned. What can't be written is compiled anew: nothing is kept of its frame.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any

from torch._dynamo.aot_compile import SerializableCallable
from torch.fx import GraphModule

from .. import report
from ..integrations import ours
from ..integrations.precompilation import Written, may_change, record_artifact, written_by
from ..options import Config
from ..passes.fx.nodes import copy_of
from ..report import GraphReport
from .callers import active_backend
from .cross_graph import LinkedGraph
from .injection_registry import find_annotated, registry
from .inner import compile_later
from .runtime import CompiledPerSetting, Outputs, PrunedGraph
from .tail_graph import TailGraph

log = logging.getLogger(__name__)

Compiled = Callable[..., Any]

_OF_A_RUN: dict[str, Any] = dict.fromkeys(("kept", "scores", "frame", "segment", "flops", "check"))


class NotKept(Exception):
    """What was compiled can't be written down; the message says why."""


@dataclasses.dataclass(frozen=True)
class _Pruned:
    """What is kept of a ``PrunedGraph``, beside what the inner backend compiled."""

    report: GraphReport
    outputs: Outputs
    count_text: Written | None
    may_run_unpruned: bool
    warn: bool


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What is kept of a graph.

    Attributes:
        compiled: by the inner backend.
        stock: the graph as Dynamo made it.
        pruned: None for a graph that is not.
        takes_embeddings: whether it may be given embeddings that earlier graphs put visual features into.
        setting: the options of the backend.
    """

    compiled: Written
    stock: Written
    pruned: _Pruned | None
    takes_embeddings: bool
    setting: Config


class Precompilable(CompiledPerSetting, SerializableCallable):
    """A graph, compiled for each setting that it is called with; the first of them can be written down."""

    @classmethod
    def serialize_compile_artifacts(cls, fn: Any) -> bytes:
        """Write it down, for ``aot_compile``.

        Raises:
            NotKept: where that can't be.
        """
        setting, compiled = fn.versions[0]
        return pickle.dumps(_kept(fn.module, compiled, setting))

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> Any:
        """Return what was written down, ready to run."""
        return _read(pickle.loads(data))


class PrecompiledGraph:
    """A graph that another process compiled.

    Dynamo finds precompiled code by the function that it was made of, whatever that is compiled with now. For another
    backend, for other options, and for inputs of which other graphs of this process have told something, the graph is
    compiled anew, as it was.

    Attributes:
        compiled: what runs it.
        read_stock: gives the graph as Dynamo made it, which most processes never need: reading it takes a second.
        kept: what was written down.
    """

    def __init__(self, compiled: Compiled, read_stock: Callable[[], Compiled], kept: _Kept) -> None:
        self.compiled, self.read_stock, self.kept = compiled, read_stock, kept
        self.anew: list[tuple[Any, Compiled]] = []

    def __call__(self, *args: Any) -> Any:
        """Run the graph on inputs like those it was traced with."""
        active = active_backend()
        if active is None or (ours.setting_of(active) == self.kept.setting and not self._is_told_of(args)):
            return self.compiled(*args)
        for known, compiled in self.anew:
            if known == active:
                return compiled(*args)
        stock: Any = self.read_stock()
        self.anew.append((active, compile_later(stock.graph_module, active)))
        return self.anew[-1][1](*args)

    def _is_told_of(self, args: tuple[Any, ...]) -> bool:
        if not self.kept.takes_embeddings:
            return False
        return any(find(args) is not None for find in (TailGraph.find, registry.find, find_annotated))


def keep(module: GraphModule, backend_id: str | None, compiled: Any, setting: Config) -> None:
    """Have Dynamo write a compiled graph down with the code that calls it, where that can be.

    Args:
        module: the graph as Dynamo made it.
        backend_id: how Dynamo's code calls it; None where nothing is precompiled.
        compiled: what runs it.
        setting: the options of the backend.
    """
    if backend_id is None:
        return
    try:
        content = pickle.dumps(_kept(module, compiled, setting))
    except (NotKept, pickle.PicklingError) as error:
        log.debug("not kept for other processes: %s", error)
    else:
        record_artifact(backend_id, content, Precompilable.deserialize_compile_artifacts)


def _kept(module: GraphModule, compiled: Any, setting: Config) -> _Kept:
    """Return what is kept of a graph.

    Raises:
        NotKept: where that can't be.
    """
    if may_change(setting):
        raise NotKept("functions of the user's can change from one process to the next")
    takes_embeddings = isinstance(compiled, LinkedGraph)
    if isinstance(compiled, LinkedGraph):
        # Unpruned, it watches in each call for visual features that no graph told of.
        if not isinstance(compiled.unlinked, PrunedGraph):
            raise NotKept("it reads embeddings that another graph may put visual features into")
        compiled = compiled.unlinked
    pruned = None
    if isinstance(compiled, PrunedGraph):
        count_text = compiled.count_text
        pruned = _Pruned(
            dataclasses.replace(compiled.report, **_OF_A_RUN),
            compiled.outputs,
            _written(copy_of(count_text).forward) if isinstance(count_text, GraphModule) else None,
            compiled.run_unpruned is not None,
            compiled.warn,
        )
        compiled = compiled.compiled
    return _Kept(_written(compiled), _written(copy_of(module).forward), pruned, takes_embeddings, setting)


def _written(compiled: Any) -> Written:
    try:
        return written_by(compiled)
    except Exception as error:  # of many kinds: each inner backend has its own
        raise NotKept(f"{type(compiled).__name__} can't be written down: {error}") from error


def _read(kept: _Kept) -> PrecompiledGraph:
    """Return a graph that was written down, ready to run, and report it."""
    compiled, read_stock = kept.compiled.read(), functools.cache(kept.stock.read)
    if (told := kept.pruned) is not None:
        count_text = None if told.count_text is None else told.count_text.read()
        unpruned = (lambda *args: read_stock()(*args)) if told.may_run_unpruned else None
        compiled = PrunedGraph(compiled, report.add(told.report), told.outputs, None, count_text, unpruned, told.warn)
    else:
        report.add(GraphReport(False, "no visual tokens are injected in this graph, which another process compiled"))
    return PrecompiledGraph(compiled, read_stock, kept)

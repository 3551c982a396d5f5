"""What the backend did to each graph, for programs and for people."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, overload

from torch import Tensor

from .short_repr import brief

if TYPE_CHECKING:  # options may hold what a report is needed for: a calibration
    from .options import Cut


MAX_REPORTS = 1_000
"""How many reports there are; with one more the oldest goes."""

MAX_RUNS = 16
"""Of how many runs, the last of this process, reports hold tensors."""


class Check(Protocol):
    """See ``GraphReport.check``."""

    def __call__(self, wait: bool) -> None:
        """Raise what is known; with ``wait`` once all is."""


class _Checked:
    """The field ``GraphReport.kept``. Reading it waits for what is not known yet of the runs of the graph."""

    @overload
    def __get__(self, graph_report: None, owner: type) -> None: ...
    @overload
    def __get__(self, graph_report: GraphReport, owner: type) -> Tensor | None: ...
    def __get__(self, graph_report: GraphReport | None, owner: type) -> Tensor | None:
        if graph_report is None:
            return None  # of the class: the default
        if graph_report.check is not None:
            graph_report.check(wait=True)
        kept: Tensor | None = vars(graph_report)["kept"]
        return kept

    def __set__(self, graph_report: GraphReport, value: Tensor | None) -> None:
        vars(graph_report)["kept"] = value


@dataclass(repr=False, eq=False)  # by identity: tensors have no one answer to whether they are equal
class GraphReport:
    """What became of one graph.

    The tensors of a run are the graph's own, and not to be written into. They are held for the last ``MAX_RUNS`` runs
    of any graphs: those of a graph that ran before them are None again. On a device a row with more text than positions
    are kept is seen after the run only, and reading ``kept`` raises its ``ValueError``.

    Attributes:
        pruned: whether its sequence is shortened.
        reason: why not, or how it was found.
        layer: the decoder layer after which it is (the last of several cuts); None where it is not.
        cuts: where the sequence is shortened, and to what share; None where it is not.
        hoisted: whether the scoring layer (the first of several cuts') computes only keys and values for all tokens,
            and all else for the kept ones; None where it is not shortened.
        distinct_layers: how many layers of the graph have code of their own, those of a tower in it too: the others are
            calls of an equal one (``reuse_layers``); None where it is not shortened.
        dense_masks: how many decoder layers read a mask of all pairs of tokens still, since it is not understood, or is
            one of an attention that is written out, or of flex_attention; None where it is not shortened.
        passes_s: seconds that our passes took for it; None where it is not shortened.
        num_layers: how many decoder layers the graph has; None where none were looked for.
        sequence_length: S, a number or the text of a symbolic length; likewise the next three.
        pruned_length: S', after the last cut.
        visual_tokens: visual tokens of a row.
        kept_tokens: those kept after the last cut.
        kept: the ``[B, S']`` positions that the last run kept, None before the first.
        scores: the ``[B, S]`` float32 scores that the first cut of the last run went by, NaN where a token is
            not visual; None before the first run.
        frame: the ``[B, S]`` int64 numbers of the frames in the last run, as far as the graph shows them, -1 where a
            token is not visual; None before the first run.
        segment: likewise the segments of ShaRP, as the first cut of the last run had them; None where it has none.
        flops: floating-point operations of the last run in ``sharp_compile.explain``, without and with pruning; each
            None where PyTorch's counter can't run the graph.
        check: raises the errors of earlier runs of the graph that are known by now, and with ``wait`` all of them; None
            where there are none.
    """

    pruned: bool
    reason: str
    layer: int | None = None
    num_layers: int | None = None
    sequence_length: int | str | None = None
    pruned_length: int | str | None = None
    visual_tokens: int | str | None = None
    kept_tokens: int | str | None = None
    kept: _Checked = _Checked()
    scores: Tensor | None = None
    hoisted: bool | None = None
    passes_s: float | None = None
    cuts: tuple[Cut, ...] | None = None
    frame: Tensor | None = None
    segment: Tensor | None = None
    flops: tuple[int | None, int | None] | None = None
    distinct_layers: int | None = None
    dense_masks: int | None = None
    check: Check | None = None

    def __repr__(self) -> str:
        return f"<GraphReport: {self.summary()}>"

    def summary(self) -> str:
        """Return what became of the graph, in one line."""
        if not self.pruned:
            return f"not pruned: {brief(self.reason)}"
        return (
            f"pruned after layer {self.layer} of 0..{(self.num_layers or 0) - 1}: "
            f"{self.sequence_length} -> {self.pruned_length} tokens, "
            f"{self.visual_tokens} -> {self.kept_tokens} of them visual"
        )


@dataclass(frozen=True)
class _Watcher:
    seen: list[GraphReport]
    flops: bool


_reports: deque[GraphReport] = deque(maxlen=MAX_REPORTS)
_holding: deque[GraphReport] = deque()
# Reentrant: the garbage collector may run inside, and report what it finds.
_lock = threading.RLock()
# Each thread watches what it does itself.
_watchers: ContextVar[tuple[_Watcher, ...]] = ContextVar("watchers", default=())
_latest = threading.local()


def add(graph_report: GraphReport) -> GraphReport:
    """Add a report to those of this process, and return it."""
    with _lock:
        _reports.append(graph_report)
    notice(graph_report)
    return graph_report


def notice(graph_report: GraphReport) -> None:
    """Tell who is watching in this thread that a graph was compiled or ran."""
    for watcher in _watchers.get():
        if not any(other is graph_report for other in watcher.seen):
            watcher.seen.append(graph_report)


def flops_wanted() -> bool:
    """Return whether somebody watches who wants graphs counted."""
    return any(watcher.flops for watcher in _watchers.get())


def keep(
    graph_report: GraphReport,
    kept: Tensor | None,
    scores: Tensor | None = None,
    frame: Tensor | None = None,
    segment: Tensor | None = None,
) -> None:
    """Note what the run of a pruned graph kept, in its report and as the latest of this thread.

    ``kept`` is None for a run that was not pruned.
    """
    with _lock:
        _hold(graph_report, kept, scores, frame, segment)
        if graph_report in _holding:
            _holding.remove(graph_report)
        _holding.append(graph_report)
        if len(_holding) > MAX_RUNS:
            _hold(_holding.popleft())
    _latest.kept = kept
    notice(graph_report)


def _hold(
    graph_report: GraphReport,
    kept: Tensor | None = None,
    scores: Tensor | None = None,
    frame: Tensor | None = None,
    segment: Tensor | None = None,
) -> None:
    graph_report.kept, graph_report.scores, graph_report.frame, graph_report.segment = kept, scores, frame, segment


def latest_kept() -> Tensor | None:
    """Return the ``[B, S']`` positions that the last pruned graph to run in this thread kept; None before the first."""
    return getattr(_latest, "kept", None)


@contextmanager
def watch(flops: bool = False) -> Iterator[list[GraphReport]]:
    """Yield a list of the graphs that this thread compiles, and of the pruned ones that it runs, while it is open.

    With ``flops`` the operations of the pruned ones that run are counted, which takes seconds.
    """
    watcher = _Watcher([], flops)
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield watcher.seen
    finally:
        _watchers.reset(token)


def reports() -> list[GraphReport]:
    """Return the reports of the graphs that the backend was given since ``reset``, in the order in which it was.

    They are the last ``MAX_REPORTS``.

    Raises:
        ValueError: for a run on a device that had more text in a row than positions are kept. It is told of once.
    """
    found = seen()
    for graph_report in found:
        if graph_report.check is not None:
            graph_report.check(wait=True)
    return found


def seen() -> list[GraphReport]:
    """Return the same, and wait for nothing."""
    with _lock:
        return list(_reports)


def reset() -> None:
    """Forget all reports. Graphs that are compiled already go on, and are not reported again."""
    with _lock:
        _reports.clear()

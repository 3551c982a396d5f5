"""What is said about a graph: its report, warnings, logs, artifacts, and the errors that Dynamo passes on."""

from __future__ import annotations

import functools
import logging
import time
import warnings

from torch._dynamo.exc import (
    BackendCompilerFailed,
    ShortenTraceback,
    Unsupported,
    UserError,
    exceptions_allowed_to_be_fallback,
)
from torch._dynamo.utils import graph_break_reasons
from torch.fx import GraphModule

from ..integrations import ours
from ..integrations.transformers.flash_attention import hidden_by_flash_attention
from ..observability import artifact, count, readable
from ..options import Config
from ..passes.context import PruneResult
from ..passes.errors import CannotPrune, SelectorError
from ..report import GraphReport

log = logging.getLogger(__name__)


def describe(graph_report: GraphReport, pruned: PruneResult, began: float, how_found: str) -> None:
    """Report that a graph was pruned.

    Args:
        graph_report: that of the graph.
        pruned: what was done.
        began: when, by ``time.perf_counter``.
        how_found: where the visual tokens come from.
    """
    graph_report.pruned, graph_report.dense_masks = True, pruned.dense_masks
    graph_report.reason = f"{how_found}; {pruned.remark}" if pruned.remark else how_found
    graph_report.cuts, graph_report.layer = pruned.cuts, pruned.cuts[-1].layer
    graph_report.num_layers, graph_report.hoisted = pruned.num_layers, pruned.hoisted
    graph_report.passes_s = time.perf_counter() - began


def log_pruned(graph_report: GraphReport, before: GraphModule, after: GraphModule) -> None:
    """Log the decision and, where somebody looks, the graph before and after."""
    decision = f"pruned after layer {graph_report.layer} of {graph_report.num_layers}: {graph_report.reason}"
    log.info("%s", decision)
    count("pruned")
    artifact("decision", lambda: decision)
    for name, module in (("before", before), ("after", after)):
        if log.isEnabledFor(logging.DEBUG):
            log.debug("graph %s pruning:\n%s", name, readable(module))
        artifact(name, functools.partial(readable, module))


def decline(graph_report: GraphReport, config: Config, error: Exception) -> None:
    """Do what the user asked for about a graph that the passes could not prune, because of ``error``.

    An exception that no pass means to raise is a fault of ours, and no reason to end the user's call.

    Raises:
        Exception: ``error``, for a selector that can't be compiled and with ``on_skip="raise"``.
    """
    graph_report.reason = str(error)
    if isinstance(error, SelectorError):
        raise error
    if isinstance(error, CannotPrune):
        graph_report.reason += hidden_by_flash_attention()
        skip(graph_report, config)
        return
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    graph_report.reason = (
        f"a fault of sharp_compile ({what}), please report this line; the log of the module sharp_compile has the "
        "traceback at level DEBUG"
    )
    log.debug("a fault in the passes", exc_info=error)
    if config.on_skip == "raise":
        raise for_dynamo(error) from error
    skip(graph_report, config)


def skip(graph_report: GraphReport, config: Config, may_raise: bool = True) -> None:
    """Do what the user asked for about a graph with visual tokens that runs unpruned.

    Raises:
        CannotPrune: with ``on_skip="raise"``, where that ``may_raise``.
    """
    log.info("not pruned: %s", graph_report.reason)
    count("declined")
    artifact("decision", lambda: f"not pruned: {graph_report.reason}")
    if config.on_skip == "raise" and may_raise:
        raise CannotPrune(graph_report.reason)
    if config.on_skip != "silent":
        warnings.warn(f"sharp_compile runs a graph unpruned: {graph_report.reason}", stacklevel=2)


def breaks_so_far() -> int:
    """Return how many times Dynamo has broken a graph in this process, since it was last reset."""
    return len(graph_break_reasons)


def last_break(since: int) -> str:
    """Return where Dynamo last broke a graph, as the end of a reason; "" if nowhere since there were so many breaks."""
    for told in reversed(graph_break_reasons[since:]):
        if told.user_stack:
            frame = told.user_stack[-1]
            what = told.reason.splitlines()[0]
            return (
                f'; Dynamo broke the code that followed, last in {frame.name} (File "{frame.filename}", line '
                f"{frame.lineno}): {what}"
            )
    return ""


def for_dynamo(error: Exception) -> Exception:
    """``error`` as Dynamo lets it pass, and as who documents or expects it can catch it.

    Dynamo wraps most errors of a backend, and takes some for breaks of the graph, in silence.
    """
    kind = type(error)
    breaks = isinstance(error, (Unsupported, UserError, *exceptions_allowed_to_be_fallback))
    try:
        if not breaks:
            named_alike = type(kind.__name__, (ShortenTraceback, kind), {"__module__": kind.__module__})
            return named_alike(*error.args, first_useful_frame=None)
    except TypeError:  # a class that can't be combined or made from its arguments
        pass
    return BackendCompilerFailed(ours.backend(), error, None)

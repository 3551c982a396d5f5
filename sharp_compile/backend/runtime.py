"""Graphs when they run: which version of one, and what a pruned one hands back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from .. import patches, report
from ..flops import count_flops
from ..passes.context import PruneResult, TextCheck, kept_at
from ..passes.token_dim.plan import Returned
from ..report import GraphReport
from .callers import active_backend
from .inner import Compiled
from .tail_graph import hand_on
from .text_check import LateChecks, too_much_text


class CompiledPerSetting:
    """A graph, compiled for each setting that it is called with.

    A function that reached Dynamo's limit of recompilations runs what was compiled before by its guards alone: with
    whatever backend and options that was. So a graph may be called by users of other options, and by users of another
    backend, who get what they would have got without the limit: the graph compiled as they asked.

    Attributes:
        module: the graph as Dynamo made it.
        latest: the backend of the latest call, and what ran.
    """

    def __init__(
        self,
        module: GraphModule,
        compiled: Compiled,
        setting: Any,
        setting_of: Callable[[Any], Any],
        compile_for: Callable[[GraphModule, Any, Any, Sequence[Any]], Compiled],
    ) -> None:
        """Take a graph that was just compiled.

        Args:
            module: the graph as Dynamo made it.
            compiled: the graph, for the backend that is active now.
            setting: the options that it was compiled with.
            setting_of: gives the options of a backend; None for a backend of others.
            compile_for: compiles the graph anew, for a backend, its options or None, and the inputs of a call.
        """
        self.module = module
        self.setting_of, self.compile_for = setting_of, compile_for
        self.latest = backend, _ = active_backend(), compiled
        # A backend of others that calls this one is known by itself.
        self.versions: list[tuple[Any, Compiled]] = [(setting, compiled), (backend, compiled)]
        self.lock = threading.RLock()

    def __call__(self, *args: Any) -> Any:
        """Run the graph on inputs like those it was traced with."""
        backend, compiled = self.latest
        active = active_backend()
        if active is None:
            _, compiled = self.versions[0]
        elif active is not backend:
            compiled = self._version(active, args)
            self.latest = active, compiled
        return compiled(*args)

    def _version(self, active: Any, args: Sequence[Any]) -> Compiled:
        setting = self.setting_of(active)
        key = active if setting is None else setting
        with self.lock:
            for known, compiled in self.versions:
                if known is not None and known == key:
                    return compiled
            compiled = self.compile_for(self.module, active, setting, args)
            self.versions.append((key, compiled))
            return compiled


@dataclass(frozen=True)
class Outputs:
    """What a pruned graph returns, and what is to be done with it.

    Attributes:
        aux: the names of the auxiliary outputs, which come last; see ``PruneResult``.
        returned: those of the graph's own results that are shortened.
        states: the places of those that are hidden states ``[B, S', C]`` after the last cut.
        stages: how often the graph is cut.
        broke: whether Dynamo ended the graph by a break.
        text_check: when the text of the rows is checked; see ``PruneResult``.
        positions: the places of kept positions among the graph's own results, for caches.
        overwritten: whether the next run writes into the memory of what this one returned, as CUDA graphs do.
    """

    aux: tuple[str, ...]
    returned: tuple[Returned, ...]
    states: tuple[int, ...]
    stages: int
    broke: bool
    text_check: TextCheck
    positions: tuple[int, ...]
    overwritten: bool

    @staticmethod
    def of(pruned: PruneResult, ended: Any, overwritten: bool) -> Outputs:
        """Return what a pruned graph returns; ``ended`` is why Dynamo ended it where it did, None if not known."""
        return Outputs(
            pruned.aux_outputs,
            pruned.returned,
            pruned.states,
            len(pruned.cuts),
            ended is not None and bool(ended.graph_break),
            pruned.text_check,
            pruned.positions,
            overwritten,
        )


class PrunedGraph:
    """A pruned graph as Dynamo expects it: its auxiliary outputs, which come last, go to the report.

    A call waits for no device. Where a row has more text than positions are kept, a graph on the CPU runs unpruned; on
    a device it has run by the time that is known, and the next call or who reads its report gets the error.

    Attributes:
        compiled: the graph after pruning, compiled; it returns the auxiliary outputs too.
        report: that of the graph.
        outputs: what it returns.
        graphs: before and after pruning, for those who want to know what they take; None where they are not known.
        count_text: gives the text tokens of each row ``[B]``, and how many positions are kept, ahead of a run; None
            where the graph may be run for it.
        run_unpruned: runs the graph as Dynamo made it, for a call that can't be pruned; None where that is an error.
        late: the checks of runs whose text is on its way from the device.
    """

    def __init__(
        self,
        compiled: Compiled,
        graph_report: GraphReport,
        outputs: Outputs,
        graphs: tuple[GraphModule, GraphModule] | None,
        count_text: Compiled | None,
        run_unpruned: Compiled | None,
        warn: bool,
    ) -> None:
        self.compiled, self.report, self.outputs, self.graphs = compiled, graph_report, outputs, graphs
        self.count_text, self.run_unpruned, self.warn = count_text, run_unpruned, warn
        self.late = LateChecks()
        if outputs.text_check == "late":
            graph_report.check = self.late.check

    def __call__(self, *args: Any) -> Sequence[Any]:
        """Run the graph on inputs like those it was traced with.

        Raises:
            ValueError: where a row has more text than positions are kept, and ``run_unpruned`` is None; or where one
                of an earlier call had.
        """
        patches.install()
        self.late.check(wait=False)
        if self.count_text is not None:
            text, count = self.count_text(*args)
            if (reason := too_much_text(text, count)) is not None:
                return self._run_unpruned(reason, args)
        results, aux = self._strip_aux_outputs(self.compiled(*args))
        text, kept, visual = aux.pop("text"), aux["kept"], aux.pop("visual", None)
        if self.outputs.text_check == "late":
            self.late.add(text, kept.shape[1])
        elif self.outputs.text_check == "now" and (reason := too_much_text(text, kept.shape[1])) is not None:
            return self._run_unpruned(reason, args)
        stages = {stage: aux.pop(kept_at(stage), kept) for stage in range(1, self.outputs.stages + 1)}
        report.keep(self.report, **aux)
        length = aux["frame"].shape[1]
        if visual is not None:
            self._measure(length, kept.shape[1], visual)
        if report.flops_wanted() and self.graphs is not None:
            self.report.flops = count_flops(self.graphs[0], args), count_flops(self.graphs[1], args)
        returned, states = self.outputs.returned, self.outputs.states
        return tuple(hand_on(results, returned, states, stages, length, self.outputs.broke))

    def _measure(self, length: int, kept: int, visual: int) -> None:
        """Report the lengths of the last call, where the graph did not show them when it was rewritten."""
        self.report.sequence_length, self.report.visual_tokens = length, visual
        self.report.pruned_length, self.report.kept_tokens = kept, kept - (length - visual)

    def _strip_aux_outputs(self, results: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Part the graph's own results from its auxiliary outputs, by name."""
        names = self.outputs.aux
        results, aux = list(results[: -len(names)]), dict(zip(names, results[-len(names) :], strict=True))
        if self.outputs.overwritten:
            # Reports, records and caches hold these past the next run.
            aux = {name: value.clone() if isinstance(value, Tensor) else value for name, value in aux.items()}
            for place in self.outputs.positions:
                results[place] = results[place].clone()
        return results, aux

    def _run_unpruned(self, reason: str, args: Sequence[Any]) -> Sequence[Any]:
        if self.run_unpruned is None:
            raise ValueError(reason)
        if self.warn:
            self.warn = False
            warnings.warn(f"sharp_compile runs this call unpruned, and others like it: {reason}", stacklevel=3)
        report.keep(self.report, None)
        results: Sequence[Any] = self.run_unpruned(*args)
        return results

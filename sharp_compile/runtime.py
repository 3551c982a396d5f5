"""A pruned graph when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from . import report
from .flops import count_flops
from .report import GraphReport

Compiled = Callable[..., Any]


class PrunedGraph:
    """A pruned graph as Dynamo expects it: its auxiliary outputs, which come last, go to the report.

    Attributes:
        compiled: the graph after pruning, compiled; it returns the auxiliary outputs too.
        report: that of the graph.
        told: the names of the auxiliary outputs, see `passes.pipeline.Pruned`.
        graphs: before and after pruning, for those who want to know what they take.
    """

    def __init__(
        self, compiled: Compiled, made: GraphReport, told: tuple[str, ...], graphs: tuple[GraphModule, GraphModule]
    ) -> None:
        self.compiled, self.report, self.told, self.graphs = compiled, made, told, graphs

    def __call__(self, *args: Any) -> Sequence[Any]:
        """Runs the graph on inputs like those it was traced with."""
        results = self.compiled(*args)
        extra = dict(zip(self.told, results[-len(self.told) :], strict=True))
        text, kept = extra.pop("text"), extra["kept"]
        # Meta tensors have shapes and no data to check.
        most = 0 if text.is_meta else int(text.max())
        if most > kept.shape[1]:
            row = int(text.argmax())
            raise ValueError(
                f"row {row} of the batch has {most} text tokens, but only {kept.shape[1]} positions are kept: its "
                "visual tokens and padding are fewer than what is dropped of every row. The batch mixes videos with "
                "rows of little or no video; run those apart, or with a higher retention"
            )
        report.keep(self.report, **{name: tensor.clone() for name, tensor in extra.items()})
        if report.flops_wanted():
            self.report.flops = count_flops(self.graphs[0], args), count_flops(self.graphs[1], args)
        return tuple(results[: -len(self.told)])

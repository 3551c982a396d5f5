"""One forward call, explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from . import report
from .report import GraphReport


@dataclass(frozen=True)
class Explanation:
    """What the backend did to the graphs of one call.

    Attributes:
        graphs: a report for each graph that it was given, in order.
    """

    graphs: tuple[GraphReport, ...]

    @property
    def pruned(self) -> bool:
        """Whether any graph was shortened."""
        return any(graph.pruned for graph in self.graphs)

    def table(self) -> Table:
        """The same facts for people, a row for each graph."""
        table = Table(title="sharp_compile: what became of each graph")
        for column in ("graph", "pruned after layer", "sequence", "visual tokens", "why"):
            table.add_column(column)
        for number, graph in enumerate(self.graphs):
            if graph.pruned:
                cut = f"{graph.layer} of 0..{(graph.num_layers or 0) - 1}"
                sequence = f"{graph.sequence_length} -> {graph.pruned_length}"
                visual = f"{graph.visual_tokens} -> {graph.kept_tokens}"
                table.add_row(str(number), cut, sequence, visual, graph.reason)
            else:
                table.add_row(str(number), "-", "-", "-", graph.reason)
        return table


def explain(model: torch.nn.Module, /, **inputs: Any) -> Explanation:
    """Runs one forward call of a model, and prints what became of its graphs.

    A model that was compiled with ``model.compile(backend="sharp", ...)`` runs as it is: its new graphs are
    shown, and those that are pruned. Any other is compiled for this call with the default options.

    Args:
        model: a module.
        inputs: what to call it with.

    Returns:
        The facts that were printed.
    """
    call: Callable[..., Any] = model
    if getattr(model, "_compiled_call_impl", None) is None:
        call = torch.compile(model._call_impl, backend="sharp")
    with report.watch() as graphs, torch.no_grad():
        call(**inputs)
    explanation = Explanation(tuple(graphs))
    Console().print(explanation.table())
    return explanation

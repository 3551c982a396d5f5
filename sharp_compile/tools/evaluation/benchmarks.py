"""A checkpoint on the benchmarks of lmms-eval, from the request to the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from .lmms import Row, evaluate
from .run import table_of
from .variants import Way


@dataclass(frozen=True)
class Request:
    """What to evaluate: every way to prune on every task; see ``lmms.evaluate`` for the fields."""

    model: str
    tasks: Sequence[str]
    ways: Sequence[Way]
    inner: str
    limit: int | None
    include: Path | None
    frames: int
    trust_remote_code: bool


def run(request: Request) -> Iterator[list[Row]]:
    """Evaluate the full model, then one way to prune after the other, and yields the rows of each.

    Raises:
        LmmsError: see ``lmms.evaluate``.
        NotPruned: if a question is answered unpruned that should not be.
        ValueError: for options that the backend refuses.
    """
    full: dict[tuple[str, str], float] = {}
    for way in (None, *request.ways):
        rows = evaluate(
            request.model,
            request.tasks,
            None if way is None else way.options(request.inner),
            request.limit,
            request.include,
            request.frames,
            request.trust_remote_code,
        )
        if way is None:
            full = {(row.task, row.metric): row.accuracy for row in rows}
        yield [replace(row, share_of_full=_share(row.accuracy, full[row.task, row.metric])) for row in rows]


def summary(rows: Sequence[Row]) -> Table:
    """Return a line for each metric of each task and way to prune."""
    table = table_of("Accuracy in percent, with its standard error", "selector", "layer", "task", "metric")
    for heading in ("kept", "accuracy", "questions", "share of full"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.selector,
            "" if row.layer is None else str(row.layer),
            row.task,
            row.metric,
            f"{row.retention:.0%}",
            f"{row.accuracy:.1f} ± {row.stderr:.1f}",
            f"{row.n:,}",
            "" if row.share_of_full is None else f"{row.share_of_full:.1f}",
        )
    return table


def _share(accuracy: float, full: float) -> float | None:
    """``accuracy`` over ``full`` in percent; None where the full model has nothing right."""
    return None if full == 0 else 100 * accuracy / full

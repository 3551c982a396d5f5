"""The evaluation from the trained models to the tables, the plot and the JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table

from sharp_compile.tools import results_io
from sharp_compile.tools.progress import progress
from sharp_compile.tools.suppressed_logs import suppress_logs

from . import MODELS
from .dataset import Exam, hold_out
from .rows import Row, row_of
from .score import Grade, grade, pruned
from .variants import Way

Grades = dict[Way | None, list[Grade]]
"""A grade for each world; None is the full model."""


@dataclass(frozen=True)
class Request:
    """What to evaluate: every way to prune in every world, with ``questions`` each."""

    seed: int  # of the training
    worlds: Sequence[str]
    ways: Sequence[Way]
    questions: int
    exam_seed: int
    inner: str


def load(folder: Path) -> tuple[Any, Any]:
    """Return a trained model in float32, ready to answer, and its tokenizer."""
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def run(request: Request) -> list[Row]:
    """Evaluate and prints the tables.

    Returns:
        A row for each way to prune in each world, the full model first.

    Raises:
        NotPruned: if a model runs unpruned that should not.
        ValueError: for options that the backend refuses.
    """
    suppress_logs()
    with progress(request.questions * len(request.worlds) * (2 + len(request.ways))) as shown:
        shown.begin("drawing videos")
        exams = [hold_out(world, request.questions, request.exam_seed, shown.advance) for world in request.worlds]
        shown.begin("the full model")
        model, tokenizer = load(MODELS / f"seed-{request.seed}")
        grades: Grades = {None: [grade(model, tokenizer, exam, False, shown.advance) for exam in exams]}
        for way in request.ways:
            shown.begin(str(way))
            fast = pruned(model, **way.options(request.inner))
            grades[way] = [grade(fast, tokenizer, exam, way.retention < 1, shown.advance) for exam in exams]
    rows = _rows(request, exams, grades)
    _print(request, rows)
    return rows


def _rows(request: Request, exams: list[Exam], grades: Grades) -> list[Row]:
    return [
        row_of(
            f"seed {request.seed}",
            exam,
            way,
            graded[place],
            grades[None][place],
            grades[sharp][place] if sharp in grades else None,
        )
        for way, graded in grades.items()
        for sharp in [way and replace(way, selector="sharp")]
        for place, exam in enumerate(exams)
    ]


def _print(request: Request, rows: Sequence[Row]) -> None:
    console = Console(markup=False)
    console.print(results_io.machine())
    for layer in dict.fromkeys(way.layer for way in request.ways):
        console.print(_summary(request, layer, [row for row in rows if row.layer in (None, layer)]))
    if any(row.behind_sharp is not None for row in rows):
        console.print(_leads(request, rows))
    for layer, retention in dict.fromkeys((way.layer, way.retention) for way in request.ways):
        shown = [row for row in rows if (row.layer, row.retention) in ((None, 1.0), (layer, retention))]
        console.print(_by_kind(layer, retention, shown))
    console.print(
        f"{request.questions} held-out questions a world, each on a video of its own, the same for all rows; "
        "accuracy and standard error in percent. share: accuracy over that of the full model, mean over the worlds. "
        "A lead of less than two standard errors is none."
    )


def _summary(request: Request, layer: int, rows: Sequence[Row]) -> Table:
    table = table_of(f"Accuracy, model of training seed {request.seed}, cut after layer {layer}", "selector", "kept")
    for heading in (*request.worlds, "mean", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for selector, retention in dict.fromkeys((row.selector, row.retention) for row in rows):
        of_way = [row for row in rows if (row.selector, row.retention) == (selector, retention)]
        accuracies = [f"{row.accuracy:.1f} ± {row.stderr:.1f}" for row in of_way]
        means = [
            statistics.fmean(values)
            for values in zip(*((row.accuracy, row.share_of_full) for row in of_way), strict=True)
        ]
        table.add_row(selector, f"{retention:.0%}", *accuracies, *(f"{mean:.1f}" for mean in means))
    return table


def _leads(request: Request, rows: Sequence[Row]) -> Table:
    """Return how many points ``sharp`` is ahead, from the paired answers."""
    table = table_of("Points by which sharp is ahead, on the same videos", "of", "kept", "cut after layer")
    for world in request.worlds:
        table.add_column(world, justify="right", no_wrap=True)
    for way in request.ways:
        leads = [
            f"{row.behind_sharp:+.1f} ± {row.behind_sharp_stderr:.1f}"
            for row in rows
            if (row.selector, row.retention, row.layer) == (way.selector, way.retention, way.layer)
            and row.behind_sharp is not None
        ]
        if leads:
            table.add_row(way.selector, f"{way.retention:.0%}", str(way.layer), *leads)
    return table


def _by_kind(layer: int, retention: float, rows: Sequence[Row]) -> Table:
    """Return a line for each kind of question, a column for each selector."""
    table = table_of(f"By kind of question, {retention:.0%} kept after layer {layer}", "world", "kind")
    for selector in dict.fromkeys(row.selector for row in rows):
        table.add_column("full" if selector == "none" else selector, justify="right", no_wrap=True)
    for world in dict.fromkeys(row.world for row in rows):
        of_world = [row for row in rows if row.world == world]
        for kind in of_world[0].kinds:
            table.add_row(world, kind, *(f"{row.kinds[kind][0]:.0f}" for row in of_world))
    return table


def table_of(title: str, *headings: str) -> Table:
    """Return an empty table in the style of all of them, with its first columns."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table

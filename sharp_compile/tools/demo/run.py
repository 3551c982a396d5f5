"""The demo from the video to the table, the picture and the JSON file."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

import sharp_compile
from sharp_compile.report import GraphReport
from sharp_compile.tools import results_io
from sharp_compile.tools.demo import DemoError, answers, measure, models, picture, video
from sharp_compile.tools.demo.row import Row
from sharp_compile.tools.evaluation.scenes import WORLDS
from sharp_compile.tools.evaluation.score import NotPruned
from sharp_compile.tools.progress import progress
from sharp_compile.tools.suppressed_logs import suppress_logs
from sharp_compile.tools.timing import Timing, interleave
from sharp_compile.tools.weight_sharing import weight_sharing_copy

CLIP = Path(__file__).with_name("clip.mp4")
"""The video that is shown if the user brings none."""

_WAYS = ("eager", "inductor", "sharp")


@dataclass(frozen=True)
class Request:
    """What to show: a video, on a checkpoint or the models that are built here, pruned in which way."""

    video: Path
    model: Path | None
    question: str | None
    retention: float
    layer: int
    selector: str
    frames: int
    repeats: int
    output: Path

    @property
    def options(self) -> dict[str, Any]:
        """Those of the backend. A model that can't be pruned has nothing to show."""
        return {"retention": self.retention, "layer": self.layer, "selector": self.selector, "on_skip": "raise"}


def run(request: Request) -> list[Row]:
    """Ask, measure all models, print the tables and write the picture.

    The answers come first, and with them a picture: timing takes longer.

    Returns:
        Three rows for each model: eager, Inductor and sharp.

    Raises:
        DemoError: Something that the user can change keeps the demo from running.
    """
    suppress_logs()
    _check_compiler()
    clip = video.read(request.video, request.frames)
    sources = list(models.built_in()) if request.model is None else [models.local(request.model)]
    sections = _ask_trained_model(request) if request.model is None else []
    rows: list[Row] = []
    # For each model: load it, ask a checkpoint twice, count twice, and each way one call more than are timed.
    of_each = 3 + 2 * (request.model is not None) + len(_WAYS) * (request.repeats + 1)
    with progress(len(sources) * of_each) as shown:
        for source in sources:
            # The models share code, of which Dynamo keeps but a few compiled versions; the last one's are done with.
            torch.compiler.reset()
            shown.next(f"{source.name}: loading")
            case = models.prepare(source, clip, request.question)
            said = answers.ask_checkpoint(case, request.options, shown.next) if request.model is not None else None
            measured, section = _one(case, clip, request, shown.next)
            rows += measured
            sections += section
    if sections:
        _write_picture(request.output, sections)
    _print(rows, request, len(clip.indices))
    if said is not None:
        _print_answers(case.question, *said)
    return rows


def _ask_trained_model(request: Request) -> list[picture.Section]:
    """Print what a small model answers that was trained to, and write its part of the picture."""
    console = Console(markup=False)
    try:
        with progress(len(WORLDS)) as shown:
            asked = answers.ask(request.retention, request.layer, request.selector, shown.next)
    except NotPruned as error:  # a cut that this smaller model has no layers for
        console.print(f"No questions were asked: {error}")
        return []
    sections = [answer.section() for answer in asked]
    _write_picture(request.output, sections)
    _print_questions(asked)
    console.print(f"What was kept for these answers: {request.output}")
    return sections


def _write_picture(path: Path, sections: Sequence[picture.Section]) -> None:
    image = io.BytesIO()
    picture.page(sections).save(image, "PNG", optimize=True)
    results_io.write(path, image.getvalue())


def _one(
    case: models.Case, clip: video.Clip, request: Request, step: Callable[[str], None]
) -> tuple[list[Row], list[picture.Section]]:
    """Return the rows of one model, and its section of the picture if its tokens can be placed on frames."""
    step(f"{case.name}: counting operations")
    unpruned = measure.eager_flops(case)
    step(f"{case.name}: counting operations, pruned")
    pruned = measure.pruned_flops(case, request.options, unpruned)
    flops = {"eager": unpruned, "inductor": unpruned, "sharp": pruned}

    torch.compiler.reset()
    sharp_compile.reset()
    compiled = {name: weight_sharing_copy(case.model) for name in ("inductor", "sharp")}
    compiled["inductor"].compile(backend="inductor")
    compiled["sharp"].compile(backend="sharp", options=request.options)
    ways = {"eager": case.model, **compiled}
    outputs: dict[str, Any] = {}

    def prefill(name: str) -> Callable[[], None]:
        def call() -> None:
            outputs[name] = measure.prefill(case, ways[name])

        return call

    timings = interleave(
        {name: prefill(name) for name in _WAYS},
        request.repeats,
        lambda name: step(f"{case.name}: {name}"),
    )
    layer, kept = _cut(case.name, sharp_compile.reports())

    lengths = {name: measure.cache_lengths(outputs[name]) for name in _WAYS}
    rows = _rows(case, request, timings, flops, lengths, (layer, kept.shape[1]))
    return rows, _section(case, clip, kept[0], rows)


def _rows(
    case: models.Case,
    request: Request,
    timings: Mapping[str, Timing],
    flops: Mapping[str, measure.Flops],
    cache_lengths: Mapping[str, list[int]],
    cut: tuple[int | None, int],
) -> list[Row]:
    """Return the rows of one model from what was measured of each way, and the layer and length of the cut."""
    layer, pruned_length = cut
    rows = []
    for name in _WAYS:
        is_sharp = name == "sharp"
        speedup = timings["inductor"].median / timings[name].median
        limit = flops["inductor"].prefill / flops[name].prefill
        rows.append(
            Row(
                name=name,
                model=case.name,
                layers=len(cache_lengths[name]),
                sequence_length=case.sequence_length,
                pruned_length=pruned_length if is_sharp else case.sequence_length,
                retention=request.retention if is_sharp else 1.0,
                layer=layer if is_sharp else None,
                median_s=timings[name].median,
                speedup_vs_inductor=speedup,
                flops=flops[name].prefill,
                flop_limit=limit,
                fraction_of_limit=speedup / limit,
                compile_s=timings[name].compilation,
                decoder_flops=flops[name].decoder,
                cache_lengths=cache_lengths[name],
                picture=str(request.output) if is_sharp and case.grid is not None else None,
            )
        )
    return rows


def _cut(name: str, reports: Sequence[GraphReport]) -> tuple[int | None, torch.Tensor]:
    """Return the layer of the cut and the positions kept there, ``[1, S']``, as the last run reported them."""
    for report in reversed(reports):
        if report.pruned and report.kept is not None:
            return report.layer, report.kept.cpu()
    reasons = "; ".join(dict.fromkeys(report.reason for report in reports))
    raise DemoError(f"{name}: nothing was pruned ({reasons or 'the backend was given no graph'})")


def _section(case: models.Case, clip: video.Clip, kept: torch.Tensor, rows: Sequence[Row]) -> list[picture.Section]:
    """Return the model's section of the picture: one, or none if what its tokens stand for isn't known."""
    if case.grid is None:
        return []
    is_kept = torch.isin(case.visual.cpu(), kept).numpy()
    _, inductor, sharp = rows
    each = case.grid.frames_each(len(clip.frames))
    per_grid = "" if each == 1 else f", the first of each {each} frames shown"
    return [
        picture.Section(
            f"{case.name}: {np.count_nonzero(is_kept)} of {len(is_kept)} visual tokens are kept "
            f"after layer {sharp.layer}",
            f"sequence {sharp.sequence_length} to {sharp.pruned_length} tokens, "
            f"prefill {inductor.median_s:.2f} s with Inductor, {sharp.median_s:.2f} s with sharp "
            f"({sharp.speedup_vs_inductor:.1f}x){per_grid}; dimmed: dropped",
            clip.frames[::each],
            case.grid.spread(is_kept),
        )
    ]


def _print(rows: Sequence[Row], request: Request, frames: int) -> None:
    """Print the tables for people, with all that is needed to read their numbers."""
    console = Console(markup=False)  # file names may have brackets
    console.print(
        f"{frames} frames of {request.video.name}; retention {request.retention:g}, selector {request.selector}"
    )
    console.print(results_io.machine())
    for start in range(0, len(rows), len(_WAYS)):
        console.print(_table(rows[start : start + len(_WAYS)]))
    console.print(
        "prefill: model.generate(max_new_tokens=1), vision tower included; median of "
        f"{request.repeats} interleaved runs after warm-up. FLOPs allow: how much faster than Inductor the "
        "operations of the whole prefill would let it be. cache: positions x layers."
    )
    if request.model is None:
        console.print("The weights are random: lengths and speeds are real, the choice of tokens is arbitrary.")
    if any(row.picture for row in rows):
        console.print(f"Which tokens were kept: {request.output}")
    else:
        console.print("No picture: it isn't known what part of a frame this model's visual tokens stand for.")


def _table(rows: Sequence[Row]) -> Table:
    """Return the table of one model. It fits into 80 columns, which is what a log has."""
    table = Table(title=rows[0].model, title_justify="left", title_style="bold")
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    table.add_column("run", no_wrap=True)
    for heading in ("sequence", "decoder\nFLOPs", "prefill", "vs\neager", "vs\nInductor", "FLOPs\nallow"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("cache", no_wrap=True)
    for row in rows:
        before, after = row.sequence_length, row.pruned_length
        lengths = [(length, len(list(group))) for length, group in itertools.groupby(row.cache_lengths)]
        table.add_row(
            row.name,
            f"{before}" if after == before else f"{before} → {after}",
            f"{row.decoder_flops / 1e9:.0f} G",
            f"{row.median_s:.2f} s",
            f"{rows[0].median_s / row.median_s:.2f}x",
            f"{row.speedup_vs_inductor:.2f}x",
            f"{row.flop_limit:.2f}x",
            "\n".join(f"{length} x {layers}" for length, layers in lengths),
        )
    return table


def _print_questions(asked: Sequence[answers.Answers]) -> None:
    """Print what a small model answers that was trained to."""
    table = Table(title="Questions about rendered videos", title_justify="left", title_style="bold")
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    for heading in ("world", "question", "right", "full model", "pruned"):
        table.add_column(heading, no_wrap=True)
    for answer in asked:
        table.add_row(answer.exam.world, answer.question, answer.right, *answer.full.answers, *answer.short.answers)
    console = Console(markup=False)
    console.print(table)
    console.print(
        "The answers are those of a small model that was trained to answer; `sharp-compile eval` asks it more."
    )


def _print_answers(question: str, full: str, pruned: str) -> None:
    """Print what a checkpoint answered, side by side."""
    console, table = Console(markup=False), Table(expand=True)
    console.print(f"Question: {question}")
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    for heading in ("full model", "pruned"):
        table.add_column(heading, ratio=1)
    table.add_row(full or "(nothing)", pruned or "(nothing)")
    console.print(table)


def _check_compiler() -> None:
    """Refuse to start what could not be finished: on a CPU, Inductor's output is C++."""
    if torch.accelerator.is_available():
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise DemoError("Inductor needs a C++ compiler: install g++, or name yours in CXX") from error

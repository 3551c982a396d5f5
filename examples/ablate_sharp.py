"""Measure what each part of ShaRP is worth: alone, in pairs and all three, at each layer and retention.

    python examples/ablate_sharp.py ablation.json

Evaluates the small trained model that comes with the package (see `sharp-compile eval`), in about an hour and a half
on two cores. What the JSON file holds already is not evaluated again, so a run that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from rich.progress import track

from sharp_compile.tools import results_io
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.rows import standard_error
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.scenes import WORLDS
from sharp_compile.tools.evaluation.score import grade, pruned

PARTS = ("segment", "debias", "dedup")
SUBSETS = [subset for size in range(len(PARTS) + 1) for subset in combinations(PARTS, size)]


@dataclass(frozen=True)
class Row:
    """The accuracy, in percent, of ShaRP with some of its parts, in one world."""

    parts: str
    layer: int
    retention: float
    world: str
    accuracy: float
    stderr: float
    n: int


def ablate(
    path: Annotated[Path, typer.Argument(help="The JSON file.")],
    layer: Annotated[list[int], typer.Option(help="Layers of the cut.")] = [0, 1, 2, 3, 4],  # noqa: B006
    retention: Annotated[list[float], typer.Option(help="Shares kept.")] = [0.25, 0.15, 0.1, 0.05, 0.02],  # noqa: B006
    questions: Annotated[int, typer.Option(help="In each world.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the held-out videos.")] = 1,
    trained: Annotated[int, typer.Option(help="Which of the trained models.")] = 1,
) -> None:
    """Evaluate all of it, and print a table for each layer."""
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    model, tokenizer = load(MODELS / f"seed-{trained}")
    exams = [hold_out(world, questions, seed) for world in WORLDS]
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []
    done = {(row.parts, row.layer, row.retention) for row in rows}
    for subset, at, share in track(list(product(SUBSETS, layer, retention))):
        name = " + ".join(subset) or "attention of the text alone"
        if (name, at, share) in done:
            continue
        off = {part: None for part in PARTS if part not in subset}
        fast = pruned(model, layer=at, retention=share, inner="eager", **off)
        for exam in exams:
            right = grade(fast, tokenizer, exam, True).right
            accuracy = 100 * float(right.mean())
            rows.append(Row(name, at, share, exam.world, accuracy, standard_error(right), questions))
        results_io.write_json(path, rows)
    for at in layer:
        print("\n".join(table([row for row in rows if row.layer == at])))


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows of one layer as a table in Markdown: a column for each retention, the worlds in each cell."""
    shares = sorted({row.retention for row in rows}, reverse=True)
    yield f"\n| layer {rows[0].layer} | " + " | ".join(f"{share:.0%}" for share in shares) + " | mean |"
    yield "| --- |" + " --- |" * (len(shares) + 1)
    for name in dict.fromkeys(row.parts for row in rows):
        of_parts = [row for row in rows if row.parts == name]
        cells = [" / ".join(f"{row.accuracy:.1f}" for row in of_parts if row.retention == share) for share in shares]
        yield f"| {name} | " + " | ".join(cells) + f" | {fmean(row.accuracy for row in of_parts):.1f} |"


if __name__ == "__main__":
    typer.run(ablate)

"""The table of an evaluation: accuracies with their errors, of every way to prune and every kind of question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .dataset import Exam
from .score import Grade
from .variants import Way


@dataclass(frozen=True)
class Row:
    """One way to prune in one world, in percent and points.

    Attributes:
        model: which of the trained models.
        world: one of ``scenes.WORLDS``.
        selector: the selector; ``"none"`` for the full model.
        retention: share of the visual tokens kept.
        layer: the layer after which they are; None for the full model.
        accuracy: of the answers.
        stderr: standard error of the accuracy, see ``standard_error``.
        n: number of questions.
        share_of_full: accuracy over that of the full model.
        behind_sharp: how much the accuracy is below that of ``sharp`` at the same retention and layer, on the
            same videos; None where that was not evaluated.
        behind_sharp_stderr: standard error of that difference, from the paired answers.
        asked_kept: share of the questions of whose object at least one token was kept.
        kinds: ``{kind: [accuracy, stderr, n]}``.
    """

    model: str
    world: str
    selector: str
    retention: float
    layer: int | None
    accuracy: float
    stderr: float
    n: int
    share_of_full: float
    behind_sharp: float | None = None
    behind_sharp_stderr: float | None = None
    asked_kept: float | None = None
    kinds: Mapping[str, list[float]] = field(default_factory=dict)


def standard_error(right: np.ndarray) -> float:
    """Of an accuracy, in percent: ``sqrt(p (1 - p) / n)`` with one right and one wrong answer added, so never 0."""
    share = (right.sum() + 1) / (len(right) + 2)
    return float(100 * np.sqrt(share * (1 - share) / len(right)))


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """How much better the first answers are than the second, in points, and the standard error, on the same videos."""
    points = 100.0 * (first.astype(float) - second)
    return float(points.mean()), float(points.std(ddof=1) / np.sqrt(len(points)))


def row_of(
    model: str,
    exam: Exam,
    way: Way | None,
    grade: Grade,
    full: Grade,
    sharp: Grade | None,
) -> Row:
    """The row of one grade, of the full model or one way to prune, beside those of the full model and of ``sharp``."""
    behind, behind_error = (None, None) if sharp is None or sharp is grade else difference(sharp.right, grade.right)
    kinds = np.array([question.kind for question in exam.questions])
    return Row(
        model,
        exam.world,
        "none" if way is None else way.selector,
        1.0 if way is None else way.retention,
        None if way is None else way.layer,
        100 * float(grade.right.mean()),
        standard_error(grade.right),
        len(grade.right),
        100 * float(grade.right.mean() / full.right.mean()),
        behind,
        behind_error,
        None if grade.kept is None else asked_kept(exam, grade.kept),
        {
            kind: [100 * float(right.mean()), standard_error(right), len(right)]
            for kind in dict.fromkeys(kinds.tolist())
            for right in [grade.right[kinds == kind]]
        },
    )


def asked_kept(exam: Exam, kept: np.ndarray) -> float:
    """The share, in percent, of the questions about an object of which a token was kept, ``[n, 16, 16]`` bool."""
    seen = [
        cells[thing.start : thing.start + thing.length, thing.cell].any()
        for cells, question in zip(kept, exam.questions, strict=True)
        for thing in [question.asked]
        if thing is not None
    ]
    return 100 * float(np.mean(seen))

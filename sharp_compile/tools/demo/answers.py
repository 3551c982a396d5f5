"""What a pruned model answers beside the full one: the small trained model in each world, or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import sharp_compile
from sharp_compile.tools.answering import greedy_answer
from sharp_compile.tools.demo.models import Case
from sharp_compile.tools.demo.picture import Section
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import Exam, hold_out
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.scenes import GRID, WORLDS
from sharp_compile.tools.evaluation.score import Grade, grade, pruned
from sharp_compile.tools.weight_sharing import weight_sharing_copy

NEW_TOKENS = 40
"""How long an answer of a checkpoint may get."""

_SEED = 1  # of the videos; any will do
_ENLARGED = 8  # frames of 32 pixels are drawn larger than they are


@dataclass(frozen=True)
class Answers:
    """A question on a video of one world, with what the full and the pruned model said."""

    exam: Exam
    full: Grade
    short: Grade

    @property
    def question(self) -> str:
        """The question in words."""
        return " ".join(self.exam.questions[0].words)

    @property
    def right(self) -> str:
        """The right answer."""
        return self.exam.questions[0].answer

    def section(self) -> Section:
        """Return the frames with the kept cells, under the question."""
        assert self.short.kept is not None
        frames = self.exam.frames[0].repeat(_ENLARGED, 1).repeat(_ENLARGED, 2)
        kept = self.short.kept[0].reshape(-1, GRID, GRID)
        return Section(
            f"{self.exam.world}: {self.question} {self.right}",
            f"full model: {self.full.answers[0]}; with {np.count_nonzero(kept)} of {kept.size} cells: "
            f"{self.short.answers[0]}; dimmed: dropped",
            frames,
            kept,
        )


def ask(retention: float, layer: int, selector: str, step: Callable[[str], None]) -> list[Answers]:
    """Ask the full and the pruned model.

    Raises:
        NotPruned: if the model ran unpruned.
    """
    model, tokenizer = load(MODELS / "seed-1")
    # Inductor gives the same answers, and takes longer than they do.
    fast = pruned(model, retention=retention, layer=layer, selector=selector, inner="eager")
    asked = []
    for world in WORLDS:
        step(f"a question in the {world} world")
        exam = hold_out(world, 1, _SEED)
        full, short = grade(model, tokenizer, exam, False), grade(fast, tokenizer, exam, True)
        asked.append(Answers(exam, full, short))
    return asked


def ask_checkpoint(case: Case, options: Mapping[str, Any], step: Callable[[str], None]) -> tuple[str, str]:
    """Return what a checkpoint answers in full, and pruned.

    Args:
        case: the checkpoint and its inputs. The same graphs run as when it is timed, without Inductor.
        options: those of the backend, but for ``inner``.
        step: called before each answer.
    """
    step(f"{case.name}: asking the full model")
    full = greedy_answer(case.model, case.inputs, case.processor.decode, NEW_TOKENS)
    step(f"{case.name}: asking the pruned model")
    fast = weight_sharing_copy(case.model)
    torch.compiler.reset()
    sharp_compile.compile(fast, **options, inner="eager")
    return full, greedy_answer(fast, case.inputs, case.processor.decode, NEW_TOKENS)

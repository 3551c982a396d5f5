"""Lets a model answer the questions of an exam, as its user would: with ``generate``."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

import sharp_compile
from sharp_compile.report import watch

from .dataset import Exam
from .prompts import VISUAL_TOKENS, pixel_values, prompt_ids
from .scenes import FRAMES, GRID

BATCH = 50
"""Videos that are answered at once."""


class LmmsError(Exception):
    """The evaluation can't go on, for a reason that its user can do something about; the message says what."""


class NotPruned(Exception):
    """A model that was to be evaluated pruned ran unpruned."""


@dataclass(frozen=True)
class Grade:
    """What became of n questions.

    Attributes:
        right: ``[n]`` bool.
        answers: n words; none where a model ended at once.
        kept: ``[n, 16, 16]`` bool, which cells of which frames were kept after the last cut; None unpruned.
    """

    right: np.ndarray
    answers: list[str]
    kept: np.ndarray | None


def pruned(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
    """Return a copy of ``model``, compiled by the backend with these options. What was compiled before is forgotten.

    Raises:
        ValueError: for a bad option.
    """
    torch.compiler.reset()
    sharp_compile.reset()
    return sharp_compile.compile(deepcopy(model), **options)


def grade(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    exam: Exam,
    is_pruned: bool,
    step: Callable[[int], None] = lambda count: None,
) -> Grade:
    """Ask a model all questions of an exam.

    Args:
        model: a stock model, or one that ``pruned`` made.
        tokenizer: the model's.
        exam: the questions.
        is_pruned: whether the model is to drop tokens.
        step: called with the number of questions that were answered since.

    Raises:
        NotPruned: if it is to and does not, with the backend's reasons.
    """
    count = len(exam.questions)
    ids = prompt_ids(tokenizer, exam.questions)
    answers: list[str] = []
    kept: list[np.ndarray] = []
    for start in range(0, count, BATCH):
        # All batches have one shape: the last one is filled up with its last question.
        rows = np.arange(start, start + min(BATCH, count)).clip(max=count - 1)
        new = min(BATCH, count - start)
        with watch() as seen, torch.no_grad():
            tokens = model.generate(
                input_ids=ids[rows],
                attention_mask=torch.ones_like(ids[rows]),
                pixel_values_videos=pixel_values(exam.frames[rows]),
                max_new_tokens=2,  # a word and the end
                do_sample=False,
            )
        answers += [text.strip() for text in tokenizer.batch_decode(tokens[:new, ids.shape[1] :], True)]
        if is_pruned:
            kept.append(_kept_cells(seen)[:new])
        step(new)
    right = np.array([answer == question.answer for answer, question in zip(answers, exam.questions, strict=True)])
    return Grade(right, answers, np.concatenate(kept) if kept else None)


def _kept_cells(seen: list[sharp_compile.GraphReport]) -> np.ndarray:
    ran = [report.kept for report in seen if report.pruned and report.kept is not None]
    if not ran:
        reasons = "; ".join(dict.fromkeys(report.reason for report in seen))
        raise NotPruned(f"the model ran unpruned: {reasons or 'the backend was given no graph'}")
    positions = ran[-1].cpu()
    # <s> stands before the video.
    is_kept = torch.zeros(len(positions), 1 + VISUAL_TOKENS, dtype=torch.bool)
    is_kept.scatter_(1, positions.where(positions <= VISUAL_TOKENS, 0), True)
    return is_kept[:, 1:-1].reshape(-1, FRAMES, GRID * GRID).numpy()

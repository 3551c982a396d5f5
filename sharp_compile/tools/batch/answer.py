"""A pruned model that is asked about one video after the other."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import sharp_compile
from sharp_compile.options import Config
from sharp_compile.report import watch
from sharp_compile.short_repr import brief
from sharp_compile.tools.answering import greedy_answer
from sharp_compile.tools.batch import BatchError
from sharp_compile.tools.batch.results import Asked, Record
from sharp_compile.tools.demo import DemoError
from sharp_compile.tools.demo.video import Clip, read
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.prompts import VISUAL_TOKENS, pixel_values, prompt_ids
from sharp_compile.tools.evaluation.questions import SPECIAL, VOCABULARY, Question
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.scenes import CELL, FRAMES, GRID
from sharp_compile.tools.suppressed_logs import suppress_logs

TRAINED = "the small trained model"
"""Stands for the model that comes with the package, where others have their folder."""

Inputs = dict[str, Any]


@dataclass(frozen=True)
class _Model:
    """A model; what makes its inputs of a clip, with the positions of the visual tokens; and its tokenizer."""

    model: Any
    inputs: Callable[[Clip], tuple[Inputs, torch.Tensor]]
    tokenizer: Any


def check(asked: Asked) -> None:
    """Refuse what no model has to be loaded for in order to refuse it.

    Raises:
        BatchError: with the option, its value and what is right.
    """
    try:
        Config.parse(_options(asked))
    except ValueError as error:
        raise BatchError(str(error)) from error
    if asked.model == TRAINED:
        _words(asked.question)
    elif not Path(asked.model).is_dir():
        raise BatchError(f"--model {asked.model}: there is no such folder")
    elif importlib.util.find_spec("torchvision") is None:
        raise BatchError("--model needs torchvision: pip install 'sharp-compile[video]'")


class Answerer:
    """Answers the question for any video of a folder."""

    def __init__(self, asked: Asked, folder: Path) -> None:
        """Load the model and have it compiled when it first runs.

        Raises:
            DemoError: The checkpoint can't be loaded.
        """
        suppress_logs()
        self._asked, self._folder = asked, folder
        self._loaded = _trained(asked) if asked.model == TRAINED else _checkpoint(asked)
        sharp_compile.compile(self._loaded.model, **_options(asked))

    def __call__(self, video: str) -> Record:
        """Ask about one video. Whatever goes wrong with it is in its record, as the others are still to be asked."""
        path = self._folder / video
        try:
            return self._ask(video, read(path, self._asked.frames))
        except DemoError as error:
            return Record(video, error=brief(str(error).removeprefix(f"{path}: ")))
        except Exception as error:
            return Record(video, error=brief(f"{type(error).__name__}: {error}"))

    def _ask(self, video: str, clip: Clip) -> Record:
        inputs, visual = self._loaded.inputs(clip)
        loaded = self._loaded
        with watch() as seen:
            answer = greedy_answer(loaded.model, inputs, loaded.tokenizer.decode, self._asked.max_new_tokens)
        kept, unpruned = len(visual), None
        if self._asked.retention < 1:
            runs = [report.kept for report in seen if report.pruned and report.kept is not None]
            if runs:
                kept = int(torch.isin(visual, runs[-1][0].to(visual.device)).sum())
            else:
                reasons = dict.fromkeys(report.reason for report in sharp_compile.reports() if not report.pruned)
                unpruned = "; ".join(reasons) or "no graph of it was compiled"
        return Record(video, answer, None, len(visual), kept, unpruned)


def _options(asked: Asked) -> dict[str, Any]:
    """Return the backend's. A record says why a model ran unpruned; a warning would say it beside the progress bar."""
    return {
        "retention": asked.retention,
        "layer": asked.layer,
        "selector": asked.selector,
        "inner": asked.inner,
        "on_skip": "silent",
    }


def _checkpoint(asked: Asked) -> _Model:
    # transformers' processors need torchvision, which the small trained model does without.
    from sharp_compile.tools.demo import models

    source = models.local(Path(asked.model))
    model, processor = source.load()
    once = replace(source, load=lambda: (model, processor))

    def inputs(clip: Clip) -> tuple[Inputs, torch.Tensor]:
        case = models.prepare(once, clip, asked.question)
        return case.inputs, case.visual

    return _Model(model, inputs, processor)


def _trained(asked: Asked) -> _Model:
    model, tokenizer = load(MODELS / "seed-1")
    ids = prompt_ids(tokenizer, [Question("", _words(asked.question), "", None)])
    shape = (FRAMES, GRID * CELL, GRID * CELL)

    def inputs(clip: Clip) -> tuple[Inputs, torch.Tensor]:
        if clip.frames.shape[:3] != shape:
            frames, height, width = clip.frames.shape[:3]
            raise DemoError(
                f"{frames} frames of {width} x {height} pixels; {TRAINED} reads {FRAMES} of {shape[2]} x {shape[1]}"
            )
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": pixel_values(clip.frames[None]),
        }, torch.arange(1, 1 + VISUAL_TOKENS)

    return _Model(model, inputs, tokenizer)


def _words(question: str) -> tuple[str, str, str, str]:
    """Return the words of a question to the small trained model.

    Raises:
        BatchError: It doesn't know such a question.
    """
    words = question.split()
    known = VOCABULARY[len(SPECIAL) :]
    if unknown := [word for word in words if word not in known]:
        raise BatchError(f"--question {question!r}: {TRAINED} knows no {unknown[0]!r}, but {', '.join(known)}")
    match words:
        case [first, second, third, "?"]:
            return first, second, third, "?"
    raise BatchError(f"--question {question!r}: {TRAINED} takes three words and a ?, such as 'color of ring ?'")

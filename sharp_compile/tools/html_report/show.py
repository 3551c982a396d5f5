"""``sharp-compile explain``: a model, a video and a question, as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import sharp_compile
from sharp_compile.tools.answering import greedy_answer
from sharp_compile.tools.html_report.write import write_page

_NEW_TOKENS = 40  # of an answer, at most


@dataclass(frozen=True)
class Asked:
    """A model, its inputs for one prompt, the frames that they were made of (``[T, H, W, 3]`` uint8) and a heading.

    ``decode`` gives the text of tokens ``[N]``, as a tokenizer does.
    """

    model: Any
    inputs: dict[str, Any]
    frames: np.ndarray
    title: str
    decode: Callable[..., str]


@dataclass(frozen=True)
class Row:
    """What became of one graph, as ``GraphReport`` has it, without its tensors."""

    pruned: bool
    reason: str
    layer: int | None
    num_layers: int | None
    sequence_length: int | str | None
    pruned_length: int | str | None
    visual_tokens: int | str | None
    kept_tokens: int | str | None
    hoisted: bool | None
    flops: tuple[int | None, int | None] | None


def rendered(world: str) -> Asked:
    """Return the first held-out question of a world, for the small trained model.

    Args:
        world: one of ``evaluation.scenes.WORLDS``.
    """
    from sharp_compile.tools.evaluation import MODELS
    from sharp_compile.tools.evaluation.dataset import hold_out
    from sharp_compile.tools.evaluation.prompts import pixel_values, prompt_ids
    from sharp_compile.tools.evaluation.run import load

    model, tokenizer = load(MODELS / "seed-1")
    exam = hold_out(world, 1, seed=1)
    ids = prompt_ids(tokenizer, exam.questions)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixel_values(exam.frames),
    }
    question = exam.questions[0]
    return Asked(model, inputs, exam.frames[0], f"{' '.join(question.words)} ({question.answer})", tokenizer.decode)


def filmed(model: Path, video: Path | None, question: str | None, frames: int) -> Asked:
    """Return a question about a video, for a checkpoint in a folder.

    Raises:
        DemoError: for a folder or a file that can't be used, with the reason.
    """
    from sharp_compile.tools.demo import models
    from sharp_compile.tools.demo.run import CLIP
    from sharp_compile.tools.demo.video import read

    clip = read(video or CLIP, frames)
    case = models.prepare(models.local(model), clip, question)
    return Asked(case.model, case.inputs, clip.frames, f"{case.name}: {case.question}", case.processor.decode)


def show(asked: Asked, options: Mapping[str, Any], output: Path) -> list[Row]:
    """Run one forward call, prints what became of its graphs and writes the page.

    Args:
        asked: what to run.
        options: the backend's, but for ``inner``.
        output: the page.

    Returns:
        A row for each graph.

    Raises:
        OSError: where the page can't be written.
    """
    torch.compiler.reset()
    sharp_compile.reset()
    asking = asked.inputs, asked.decode, _NEW_TOKENS
    full = greedy_answer(asked.model, *asking)
    # The reasons are on the page; a warning of each would say them twice.
    model = sharp_compile.compile(asked.model, **options, inner="eager", on_skip="silent")
    explanation = sharp_compile.explain(model, **asked.inputs)
    write_page(explanation, output, [asked.frames], asked.title, (full, greedy_answer(model, *asking)))
    Console(markup=False).print(f"The page: {output}")
    return [Row(**{name: getattr(graph, name) for name in Row.__annotations__}) for graph in explanation.graphs]

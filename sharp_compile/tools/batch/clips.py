"""Rendered videos in files, for the small trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import av

from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.questions import questions
from sharp_compile.tools.evaluation.scenes import CELL, GRID, Scene

_RATE = 8  # frames a second; the model doesn't see it


def render(folder: Path, count: int, seed: int = 0) -> dict[str, Scene]:
    """Write ``count`` videos of the sparse world into a folder, the same ones for the same arguments.

    They are encoded without loss, so that a model reads what was drawn.

    Returns:
        What is in each, by its name.
    """
    exam = hold_out("sparse", count, seed)
    scenes = {f"clip-{number:03}.mkv": scene for number, scene in enumerate(exam.scenes)}
    for name, frames in zip(scenes, exam.frames, strict=True):
        with av.open(folder / name, "w") as container:
            stream = container.add_stream("ffv1", rate=_RATE)
            stream.width = stream.height = GRID * CELL
            stream.pix_fmt = "bgr0"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return scenes


def right_answers(scenes: Mapping[str, Scene], question: str) -> dict[str, str]:
    """Return the answer for each scene in which the question has one."""
    words = tuple(question.split())
    return {name: known.answer for name, scene in scenes.items() for known in questions(scene) if known.words == words}

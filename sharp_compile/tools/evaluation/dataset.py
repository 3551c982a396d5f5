"""Held-out questions: for each of them a video of its own, which no training has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .questions import KINDS, Question, questions
from .scenes import WORLDS, Scene, draw, render


@dataclass(frozen=True)
class Exam:
    """Questions on the videos of one world.

    Attributes:
        world: one of ``scenes.WORLDS``.
        frames: ``[n, 16, 32, 32, 3]`` uint8.
        scenes: n, what the videos show.
        questions: n, one for each video, the kinds of the world in turn.
    """

    world: str
    frames: np.ndarray
    scenes: list[Scene]
    questions: list[Question]


def hold_out(world: str, count: int, seed: int, step: Callable[[], None] = lambda: None) -> Exam:
    """Return the exam of a world: the same for the same arguments, and the first of a longer one.

    Args:
        world: one of ``scenes.WORLDS``.
        count: how many questions.
        seed: any; a training draws from another sequence, whatever its seed.
        step: called for each video.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1 + WORLDS.index(world),)))
    frames, scenes, asked = [], [], []
    for number in range(count):
        kind = KINDS[world][number % len(KINDS[world])]
        possible: list[Question] = []
        while not possible:
            scene = draw(rng, world)
            possible = [question for question in questions(scene) if question.kind == kind]
        frames.append(render(rng, scene))
        scenes.append(scene)
        asked.append(possible[rng.integers(len(possible))])
        step()
    return Exam(world, np.stack(frames), scenes, asked)

"""Held-out questions."""

import numpy as np

from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.questions import KINDS, questions
from sharp_compile.tools.evaluation.scenes import draw


def test_all_kinds_in_turn_each_on_its_own_video():
    steps = []
    exam = hold_out("clutter", 13, 0, lambda: steps.append(1))
    assert [question.kind for question in exam.questions] == [*KINDS["clutter"], *KINDS["clutter"][:2]]
    assert exam.frames.shape == (13, 16, 32, 32, 3) and len(steps) == 13
    assert all(question in questions(scene) for question, scene in zip(exam.questions, exam.scenes, strict=True))


def test_a_longer_exam_begins_with_the_shorter_one():
    short, long = hold_out("crowded", 3, 5), hold_out("crowded", 7, 5)
    assert long.questions[:3] == short.questions
    assert (long.frames[:3] == short.frames).all()


def test_other_seeds_other_videos_and_none_of_a_training():
    first, second = hold_out("sparse", 4, 1), hold_out("sparse", 4, 2)
    assert first.scenes != second.scenes
    rng = np.random.default_rng(1)
    assert first.scenes[0] not in [draw(rng, "sparse") for _ in range(500)]

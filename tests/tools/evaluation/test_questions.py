"""Every question has one answer, and it is right."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sharp_compile.tools.evaluation.questions import KINDS, VOCABULARY, questions
from sharp_compile.tools.evaluation.scenes import WORLDS, Object, Scene, draw

RED_DISC = Object("red", "disc", 0, 1, 2)  # top left, first quarter
RED_RING = Object("red", "ring", 3, 5, 2)  # top right, second quarter
BLUE_RING = Object("blue", "ring", 14, 12, 4)  # bottom right, last quarter


def asked(world, *objects):
    return {" ".join(question.words): question.answer for question in questions(Scene(world, objects))}


def test_what_can_be_asked_of_three_objects():
    assert asked("sparse", RED_RING, BLUE_RING, RED_DISC) == {
        "color of disc ?": "red",
        "where is disc ?": "top-left",
        "when is disc ?": "first-quarter",
        "shape of blue ?": "ring",
        "where is blue ?": "bottom-right",
        "when is blue ?": "last-quarter",
        "color of first ?": "red",
        "shape of first ?": "disc",
        "color of last ?": "blue",
        "shape of last ?": "ring",
        "how-many objects in-all ?": "three",
    }


def test_a_crowd_is_asked_by_pairs_of_traits():
    answers = asked("crowded", RED_RING, BLUE_RING, RED_DISC)
    assert answers["where red ring ?"] == "top-right"
    assert answers["when blue ring ?"] == "last-quarter"
    assert answers["color last-quarter ring ?"] == "blue"
    assert answers["shape top-left red ?"] == "disc"
    assert "color of disc ?" not in answers


def test_no_first_of_two_that_come_together():
    answers = asked("sparse", RED_DISC, Object("green", "plus", 9, 1, 2), BLUE_RING)
    assert "color of first ?" not in answers
    assert answers["color of last ?"] == "blue"


@given(st.sampled_from(WORLDS), st.integers(0, 2**32 - 1))
def test_no_question_has_two_answers(world, seed):
    scene = draw(np.random.default_rng(seed), world)
    possible = questions(scene)
    answers = {}
    for question in possible:
        assert question.kind in KINDS[world]
        assert {*question.words, question.answer} <= set(VOCABULARY)
        assert answers.setdefault(question.words, question.answer) == question.answer
        assert question.asked is None or question.asked in scene.objects

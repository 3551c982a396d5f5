"""The numbers of the table, by hand."""

from math import sqrt

import numpy as np
import pytest

from sharp_compile.tools.evaluation.dataset import Exam
from sharp_compile.tools.evaluation.questions import Question
from sharp_compile.tools.evaluation.rows import difference, row_of, standard_error
from sharp_compile.tools.evaluation.scenes import Object, Scene
from sharp_compile.tools.evaluation.score import Grade
from sharp_compile.tools.evaluation.variants import Way

THING = Object("red", "disc", 2, 4, 2)


def exam(kinds):
    asked = [Question(kind, ("a", "b", "c", "?"), "red", None if kind == "count" else THING) for kind in kinds]
    return Exam("sparse", np.zeros(()), [Scene("sparse", (THING,))] * len(kinds), asked)


def graded(right, kept=None):
    return Grade(np.array(right, bool), ["red"] * len(right), kept)


def test_standard_errors_are_never_0():
    right = np.array([True, True, False, True])
    assert standard_error(right) == pytest.approx(100 * sqrt(4 / 6 * 2 / 6 / 4))
    assert standard_error(np.ones(98, bool)) == pytest.approx(100 * sqrt(99 / 100 / 100 / 98))


def test_differences_are_paired():
    first, second = np.array([1, 1, 0, 1], bool), np.array([1, 0, 0, 1], bool)
    assert difference(first, second) == (25, pytest.approx(25))
    assert difference(first, first) == (0, 0)


def test_a_row():
    kept = np.zeros((4, 16, 16), bool)
    kept[0, 5, 2] = kept[1, 3, 2] = kept[2, 4, 3] = True  # only the first is a token of the object
    kinds = ["color", "color", "color", "count"]
    full, sharp = graded([1, 1, 1, 1]), graded([1, 1, 1, 0])
    row = row_of("seed 1", exam(kinds), Way(1, 0.1, "fastv"), graded([1, 0, 0, 1], kept), full, sharp)
    assert (row.accuracy, row.share_of_full, row.n) == (50, 50, 4)
    assert row.behind_sharp == 25 and row.behind_sharp_stderr == pytest.approx(47.87, abs=0.01)
    assert row.asked_kept == pytest.approx(100 / 3)
    assert row.kinds["color"][0] == pytest.approx(100 / 3) and row.kinds["count"][0] == 100
    assert [kind[2] for kind in row.kinds.values()] == [3, 1]


def test_the_rows_that_others_are_compared_with():
    full, sharp = graded([1, 1]), graded([1, 0], np.zeros((2, 16, 16), bool))
    first = row_of("seed 1", exam(["color"] * 2), None, full, full, None)
    assert (first.share_of_full, first.behind_sharp, first.asked_kept) == (100, None, None)
    assert row_of("seed 1", exam(["color"] * 2), Way(1, 0.1, "sharp"), sharp, full, sharp).behind_sharp is None

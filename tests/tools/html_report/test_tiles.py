"""Visual tokens as tiles."""

import numpy as np

from sharp_compile.tools.html_report.cells import Grid
from sharp_compile.tools.html_report.tiles import Tokens, arrange


def tokens(frame):
    count = len(frame)
    return Tokens(np.arange(count, dtype=np.float32), np.zeros(count, bool), np.array(frame), None)


def test_a_grid_parts_the_tokens_and_what_is_behind_it_is_told_apart():
    first, second, rest = arrange(tokens([0] * 13), Grid(2, 2, 3))
    np.testing.assert_array_equal(first.tokens, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(second.tokens, [[6, 7, 8], [9, 10, 11]])
    np.testing.assert_array_equal(rest.tokens, [[12]])
    assert (first.picture, second.picture, rest.picture) == (0, 1, None)


def test_without_a_grid_frames_are_squares_or_strips():
    square, strip, one = arrange(tokens([0] * 9 + [1] * 30 + [2]), None)
    np.testing.assert_array_equal(square.tokens, np.arange(9).reshape(3, 3))
    assert strip.tokens.shape == (2, 28)
    assert strip.tokens[1, :2].tolist() == [37, 38] and np.all(strip.tokens[1, 2:] == -1)
    np.testing.assert_array_equal(one.tokens, [[39]])


def test_ranks_give_ties_to_the_first():
    scored = Tokens(np.array([1.0, 3.0, 1.0, 2.0], np.float32), np.zeros(4, bool), np.zeros(4, int), None)
    assert scored.order.tolist() == [2, 0, 3, 1]

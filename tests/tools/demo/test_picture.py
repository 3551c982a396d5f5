"""The picture: its size, and cells that are bright where tokens are kept and dark where not."""

import numpy as np
import pytest

from sharp_compile.tools.demo.picture import ACROSS, DIMMED, WIDTH, Section, page, panel


def noise(*shape):
    return np.random.default_rng(0).integers(120, 255, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(280, 210), (301, 199)])
@pytest.mark.parametrize("grid", [(14, 14), (16, 21), (1, 1)])
def test_kept_cells_stay_bright_and_dropped_ones_are_dimmed(size, grid):
    frame = np.full((90, 120, 3), (200, 120, 40), dtype=np.uint8)
    kept = np.random.default_rng(1).random(grid) < 0.3
    drawn = np.asarray(panel(frame, kept, size)).astype(float)
    assert drawn.shape == (size[1], size[0], 3)
    for row, column in np.ndindex(grid):
        # The middle of the cell, which is inside it however the sizes are rounded.
        y, x = int((row + 0.5) * size[1] / grid[0]), int((column + 0.5) * size[0] / grid[1])
        if kept[row, column]:
            np.testing.assert_array_equal(drawn[y, x], (200, 120, 40))
        else:
            assert drawn[y, x].max() <= DIMMED * 200


def test_a_kept_region_has_an_outline_that_dropped_cells_lack():
    frame = np.zeros((60, 60, 3), dtype=np.uint8)
    kept = np.zeros((3, 3), dtype=bool)
    kept[1, 1] = True
    drawn = np.asarray(panel(frame, kept, (60, 60)))
    lit = drawn.any(axis=-1)
    assert lit[20, 20:40].all() and lit[39, 20:40].all() and lit[20:40, 20].all() and lit[20:40, 39].all()
    assert lit.sum() == 4 * 19, "the outline and nothing else"


def test_nothing_dropped_leaves_a_frame_as_it_is_but_for_its_outline():
    frame = noise(40, 50, 3)
    drawn = np.asarray(panel(frame, np.ones((4, 5), dtype=bool), (50, 40)))
    np.testing.assert_array_equal(drawn[1:-1, 1:-1], frame[1:-1, 1:-1])


def test_the_page_has_rows_of_frames_for_each_model():
    def height(*counts):
        sections = [
            Section("model", "text", noise(count, 30, 40, 3), np.ones((count, 2, 2), dtype=bool)) for count in counts
        ]
        image = page(sections)
        assert image.width == WIDTH
        return image.height

    one = height(1)
    assert height(ACROSS) == one
    row = height(ACROSS + 1) - one
    assert height(2 * ACROSS + 1) == one + 2 * row
    assert height(1, 1) > 2 * row
    # Frames keep their shape: 4 to 3 here, at an even share of the width, less what is between them.
    assert row == pytest.approx(WIDTH / ACROSS * 3 / 4, rel=0.07)


def test_the_page_shows_each_frame_in_its_place():
    count = ACROSS + 2
    frames = np.zeros((count, 30, 40, 3), dtype=np.uint8)
    frames[-1] = 255
    kept = np.zeros((count, 2, 2), dtype=bool)
    kept[-1] = True
    bright = (np.asarray(page([Section("", "", frames, kept)])) == 255).all(axis=-1)
    y, x = bright.nonzero()
    assert bright[y.min() : y.max() + 1, x.min() : x.max() + 1].all(), "one white frame"
    assert (x.min() + x.max()) / 2 == pytest.approx(1.5 * WIDTH / ACROSS, rel=0.1), "the second"
    assert y.min() > bright.shape[0] / 2, "of the second row"

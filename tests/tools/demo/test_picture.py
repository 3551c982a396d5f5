"""The picture: its size, and cells that are bright where tokens are kept and dark where not."""

import numpy as np
import pytest

from sharp_compile.tools.demo.picture import DIMMED, HEIGHT, WIDTH, Section, page, panel


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


@pytest.mark.parametrize("counts", [(1,), (8,), (33,), (16, 16, 16, 8, 4), (64, 2)])
@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (32, 32)])
def test_the_page_fits_a_screen_and_frames_keep_their_shape(counts, shape):
    whole = {count: np.ones((count, 2, 2), bool) for count in counts}
    sections = [Section("", "", np.full((count, *shape, 3), 255, np.uint8), whole[count]) for count in counts]
    image = page(sections)
    assert image.width == WIDTH and image.height <= HEIGHT
    bright = (np.asarray(image) == 255).all(axis=-1)
    # What is outlined is not white: a frame is the white within.
    edges = np.diff(np.pad(bright[bright.any(axis=1)][0], 1).astype(int))
    widths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    assert len(widths) <= counts[0] and (widths == widths[0]).all()
    column = np.pad(bright[:, np.flatnonzero(edges == 1)[0]], 1).astype(int)
    height = np.flatnonzero(np.diff(column) == -1)[0] - np.flatnonzero(np.diff(column) == 1)[0]
    assert (widths[0] + 2) / (height + 2) == pytest.approx(shape[1] / shape[0], rel=0.05)


def test_the_page_shows_each_frame_in_its_place():
    frames = np.zeros((6, 30, 40, 3), dtype=np.uint8)
    frames[-1] = 255
    kept = np.zeros((6, 2, 2), dtype=bool)
    kept[-1] = True
    bright = (np.asarray(page([Section("", "", frames, kept)])) == 255).all(axis=-1)
    y, x = bright.nonzero()
    assert bright[y.min() : y.max() + 1, x.min() : x.max() + 1].all(), "one white frame"
    assert y.min() > bright.shape[0] / 2, "of the second row"
    assert x.min() > WIDTH / 2, "the last"

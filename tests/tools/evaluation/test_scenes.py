"""Rendered videos show what their scenes say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharp_compile.tools.evaluation.scenes import (
    CELL,
    COLORS,
    FRAMES,
    GRID,
    WORLDS,
    Object,
    Scene,
    draw,
    object_tokens,
    render,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def cell(frame, number):
    row, column = divmod(number, GRID)
    return frame[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


@pytest.mark.parametrize("color", COLORS)
def test_an_object_is_drawn_where_and_when_it_is(color):
    thing = Object(color, "square", 6, 3, 2)
    frames = render(rng(), Scene("sparse", (thing,)))
    assert frames.shape == (FRAMES, 32, 32, 3) and frames.dtype == np.uint8
    painted = np.abs(frames.astype(int) - COLORS[color]).max(-1) < 90
    inside = np.zeros((FRAMES, 32, 32), bool)
    inside[3:5] |= cell(np.arange(32 * 32).reshape(32, 32), 6).min() > np.inf
    for number in range(FRAMES):
        cell(inside[number], 6)[1:-1, 1:-1] = 3 <= number < 5
    assert painted[inside].all()
    assert painted[~inside].mean() < 0.05


def test_shapes_differ():
    drawn = {
        shape: render(rng(), Scene("sparse", (Object("red", shape, 0, 0, 1),)))[0, :CELL, :CELL, 0] > 180
        for shape in ("disc", "square", "triangle", "plus", "cross", "ring")
    }
    for first in drawn:
        assert 10 < drawn[first].sum() < 50
        assert all(first == other or (drawn[first] != drawn[other]).sum() >= 8 for other in drawn)


def test_clutter_moves_and_flashes():
    scene = Scene("clutter", (Object("red", "disc", 5, 0, 2),))
    frames = render(rng(1), scene).astype(int)
    quiet = render(rng(1), Scene("sparse", scene.objects)).astype(int)
    other = np.abs(frames - quiet).max(-1) > 30
    changed = [frozenset(zip(*np.nonzero(frame[::CELL, ::CELL]), strict=True)) for frame in other]
    assert len(set(changed)) > FRAMES // 2
    # Nothing is drawn over an object.
    disc = render(rng(1), scene)[0, 8:16, 8:16][2:6, 2:6]
    assert (np.abs(disc.astype(int) - COLORS["red"]).max(-1) < 90).all()


@given(st.sampled_from(WORLDS), st.integers(0, 2**32 - 1))
def test_no_two_objects_share_a_cell_at_a_time(world, seed):
    scene = draw(rng(seed), world)
    assert len(scene.objects) <= (30 if world == "crowded" else 4)
    assert object_tokens(scene).sum() == sum(thing.length for thing in scene.objects)
    for thing in scene.objects:
        assert 0 <= thing.start < thing.start + thing.length <= FRAMES
        if world != "clutter":
            assert thing.start * 4 // FRAMES == (thing.start + thing.length - 1) * 4 // FRAMES


def test_a_crowd_outnumbers_a_tenth_of_the_tokens():
    tokens = [object_tokens(draw(rng(seed), "crowded")).sum() for seed in range(50)]
    assert min(tokens) > 2 * 26


def test_the_same_seed_is_the_same_video():
    first, second = rng(3), rng(3)
    scene = draw(first, "clutter")
    assert scene == draw(second, "clutter")
    assert (render(first, scene) == render(second, scene)).all()


def test_no_such_world():
    with pytest.raises(ValueError, match="world 'quiet': there are sparse, clutter, crowded"):
        draw(rng(), "quiet")

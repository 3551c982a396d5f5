"""Rendered videos: coloured shapes among distractors, in three worlds.

A video has 16 frames of 32 x 32 pixels, seen as 4 x 4 cells of 8 x 8. An object is a shape of one colour that stands
in a cell for some frames. The worlds differ in what makes it hard to find what a question asks for:

- ``sparse``: one to four objects, each for 2 to 4 frames, on noisy grey.
- ``clutter``: one to four objects for 1 or 2 or for 6 to 12 frames, among moving patches of coloured noise and
  flashes of one frame.
- ``crowded``: 24 to 30 objects, whose tokens far outnumber what a pruned model keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLORS = {
    "red": (255, 25, 25),
    "green": (25, 230, 25),
    "blue": (40, 65, 255),
    "yellow": (255, 242, 25),
    "magenta": (255, 25, 255),
    "cyan": (25, 242, 242),
}
SHAPES = ("disc", "square", "triangle", "plus", "cross", "ring")
WORLDS = ("sparse", "clutter", "crowded")
FRAMES = 16
GRID = 4  # cells a side
CELL = 8  # pixels a side
PATCHES = 3  # that move through a cluttered video
FLASHES = 8

_Y, _X = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
_MASKS = {
    "disc": np.hypot(_Y, _X) < 3.6,
    "square": np.maximum(abs(_X), abs(_Y)) < 3,
    "triangle": (_Y > -3.6) & (_Y < 3.1) & (abs(_X) < (_Y + 4) / 2),
    "plus": (abs(_X) < 1.1) | (abs(_Y) < 1.1),
    "cross": abs(abs(_X) - abs(_Y)) < 1.1,
    "ring": np.maximum(abs(_X), abs(_Y)) > 2,
}


@dataclass(frozen=True)
class Object:
    """A shape of one colour in one cell (row by row from the top left), in frames ``start .. start + length - 1``."""

    color: str
    shape: str
    cell: int
    start: int
    length: int


@dataclass(frozen=True)
class Scene:
    """What is in a video, whose pixels ``render`` draws."""

    world: str
    objects: tuple[Object, ...]


def draw(rng: np.random.Generator, world: str, count: tuple[int, int] | None = None) -> Scene:
    """Return a random scene.

    Args:
        rng: where all chance comes from.
        world: one of ``WORLDS``.
        count: least and most objects; the world's own by default. In a crowded world those that find no free cell
            are left out.

    Raises:
        ValueError: for a world that there is not.
    """
    if world not in WORLDS:
        raise ValueError(f"world {world!r}: there are {', '.join(WORLDS)}")
    least, most = count or ((24, 30) if world == "crowded" else (1, 4))
    taken = np.zeros((FRAMES, GRID * GRID), bool)
    cells = rng.permutation(GRID * GRID)
    objects: list[Object] = []
    for number in range(rng.integers(least, most + 1)):
        for _ in range(20):
            start, length = _long_or_short(rng) if world == "clutter" else _within_a_quarter(rng)
            cell = int(rng.integers(GRID * GRID)) if world == "crowded" else int(cells[number])
            if not taken[start : start + length, cell].any():
                taken[max(0, start - 1) : start + length + 1, cell] = True
                color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
                objects.append(Object(str(color), str(shape), cell, start, length))
                break
    return Scene(world, tuple(objects))


def _long_or_short(rng: np.random.Generator) -> tuple[int, int]:
    length = int(rng.integers(1, 3) if rng.random() < 2 / 3 else rng.integers(6, 13))
    return int(rng.integers(0, FRAMES - length + 1)), length


def _within_a_quarter(rng: np.random.Generator) -> tuple[int, int]:
    """So that each frame of an object tells when it is there."""
    length = int(rng.integers(2, 5))
    return int(rng.integers(0, FRAMES // 4 - length + 1) + FRAMES // 4 * rng.integers(4)), length


def render(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return the frames of a scene: [16, 32, 32, 3], uint8."""
    grey = rng.uniform(64, 140, (1, GRID, 1, GRID, 1, 1))
    frames = grey + rng.uniform(-38, 38, (FRAMES, GRID, CELL, GRID, CELL, 3))
    frames = frames.reshape(FRAMES, GRID * CELL, GRID * CELL, 3)
    if scene.world == "clutter":
        _draw_patches(rng, frames)
        _draw_flashes(rng, frames, {thing.cell for thing in scene.objects})
    for thing in scene.objects:
        for frame in range(thing.start, thing.start + thing.length):
            paint = np.array(COLORS[thing.color]) * rng.uniform(0.8, 1) + rng.uniform(-25, 25, (CELL, CELL, 3))
            at = _cell(frames[frame], thing.cell)
            at[...] = np.where(_MASKS[thing.shape][..., None], paint, at)
    return frames.clip(0, 255).astype(np.uint8)


def _cell(frame: np.ndarray, cell: int) -> np.ndarray:
    top, left = cell // GRID * CELL, cell % GRID * CELL
    return frame[top : top + CELL, left : left + CELL]


def _draw_patches(rng: np.random.Generator, frames: np.ndarray) -> None:
    """Patches of coloured noise that move up to two pixels a frame, and turn back at the edges."""
    room = GRID * CELL - CELL
    for _ in range(PATCHES):
        texture = rng.uniform(-77, 77, (CELL, CELL, 3))
        start, speed = rng.integers(0, room + 1, 2), rng.integers(-2, 3, 2)
        for number, frame in enumerate(frames):
            top, left = room - abs((start + number * speed) % (2 * room) - room)
            frame[top : top + CELL, left : left + CELL] += texture


def _draw_flashes(rng: np.random.Generator, frames: np.ndarray, taken: set[int]) -> None:
    """Black and white checkers for one frame, in cells that hold no object."""
    checker = np.where((_Y // 2 + _X // 2) % 2 < 1, 242, 13)[..., None]
    free = [cell for cell in range(GRID * GRID) if cell not in taken]
    for cell, frame in zip(rng.choice(free, FLASHES), rng.integers(0, FRAMES, FLASHES), strict=True):
        _cell(frames[frame], int(cell))[...] = checker


def object_tokens(scene: Scene) -> np.ndarray:
    """Return which of the frames' cells, and so of their visual tokens, show an object: [16, 16], bool."""
    shows = np.zeros((FRAMES, GRID * GRID), bool)
    for thing in scene.objects:
        shows[thing.start : thing.start + thing.length, thing.cell] = True
    return shows

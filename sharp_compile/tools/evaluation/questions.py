"""Questions on a scene that have one answer: colour, shape, place, time, order and number.

A question is four words, an answer one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from .scenes import COLORS, FRAMES, GRID, SHAPES, Object, Scene

PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
TIMES = ("first-quarter", "second-quarter", "third-quarter", "last-quarter")
NUMBERS = ("one", "two", "three", "four")
WORDS = ("color", "shape", "where", "when", "how-many", "of", "is", "in-all", "first", "last", "objects", "?")
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>")
VOCABULARY = (*SPECIAL, *COLORS, *SHAPES, *PLACES, *TIMES, *NUMBERS, *WORDS)

_FEW = ("color", "shape", "where shape", "where color", "when shape", "when color")
_ORDER = ("first color", "first shape", "last color", "last shape")
KINDS = {
    "sparse": (*_FEW, *_ORDER, "count"),
    "clutter": (*_FEW, *_ORDER, "count"),
    "crowded": ("where", "when", "color at place", "shape at place", "color at time", "shape at time"),
}


@dataclass(frozen=True)
class Question:
    """A question with its one answer; ``asked`` is the object that it is about, if it is about one."""

    kind: str
    words: tuple[str, str, str, str]
    answer: str
    asked: Object | None


def place(thing: Object) -> str:
    """Return the quarter of the picture in which an object is."""
    row, column = divmod(thing.cell, GRID)
    return PLACES[row // (GRID // 2) * 2 + column // (GRID // 2)]


def time(thing: Object) -> str:
    """Return the quarter of the video in which an object appears."""
    return TIMES[thing.start // (FRAMES // 4)]


_color, _shape = attrgetter("color"), attrgetter("shape")


def questions(scene: Scene) -> list[Question]:
    """Return all questions of the world's ``KINDS`` that have one answer in this scene."""
    return [question for question in _all(scene) if question.kind in KINDS[scene.world]]


def _all(scene: Scene) -> Iterator[Question]:
    for thing in _alone(scene, _shape):
        yield Question("color", ("color", "of", thing.shape, "?"), thing.color, thing)
        yield Question("where shape", ("where", "is", thing.shape, "?"), place(thing), thing)
        yield Question("when shape", ("when", "is", thing.shape, "?"), time(thing), thing)
    for thing in _alone(scene, _color):
        yield Question("shape", ("shape", "of", thing.color, "?"), thing.shape, thing)
        yield Question("where color", ("where", "is", thing.color, "?"), place(thing), thing)
        yield Question("when color", ("when", "is", thing.color, "?"), time(thing), thing)
    for thing in _alone(scene, _color, _shape):
        yield Question("where", ("where", thing.color, thing.shape, "?"), place(thing), thing)
        yield Question("when", ("when", thing.color, thing.shape, "?"), time(thing), thing)
    for name, at in (("place", place), ("time", time)):
        for thing in _alone(scene, at, _shape):
            yield Question(f"color at {name}", ("color", at(thing), thing.shape, "?"), thing.color, thing)
        for thing in _alone(scene, at, _color):
            yield Question(f"shape at {name}", ("shape", at(thing), thing.color, "?"), thing.shape, thing)
    starts = sorted(scene.objects, key=lambda thing: thing.start)
    for word, end, next_to_it in (("first", starts[0], starts[1:2]), ("last", starts[-1], starts[-2:-1])):
        if all(other.start != end.start for other in next_to_it):
            yield Question(f"{word} color", ("color", "of", word, "?"), end.color, end)
            yield Question(f"{word} shape", ("shape", "of", word, "?"), end.shape, end)
    if len(scene.objects) <= len(NUMBERS):
        yield Question("count", ("how-many", "objects", "in-all", "?"), NUMBERS[len(scene.objects) - 1], None)


def _alone(scene: Scene, *traits: Callable[[Object], str]) -> list[Object]:
    """Return the objects that share these traits with no other."""
    of_each = [tuple(trait(thing) for trait in traits) for thing in scene.objects]
    counts = Counter(of_each)
    return [thing for thing, shown in zip(scene.objects, of_each, strict=True) if counts[shown] == 1]

"""A part of many cases for each run, by a seed that is printed and can be given.

`SHARP_TEST_SEED=17 pytest ...` runs the cases of seed 17. Without it the seed is 0, so that a change is judged by the
cases that the one before it passed; give another each night, and keep what it finds as a test of its own.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def seed() -> int:
    """The seed of this run."""
    return int(os.environ.get("SHARP_TEST_SEED", 0))


def some_of(cases: Mapping[str, Sequence[T]], share: float) -> set[T]:
    """One case of each of a `share` of the groups of `cases`, chosen by the seed."""
    random = Random(seed())
    groups = random.sample(sorted(cases), round(share * len(cases)))
    return {random.choice(cases[group]) for group in groups}

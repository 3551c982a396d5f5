"""A part of many cases for each run, by a seed that is printed and can be given.

`SHARP_TEST_SEED=17 pytest ...` runs the cases of seed 17 again. Without it the seed comes from the commit under
test: a commit always has the same cases, and another one has others.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar
from zlib import crc32

T = TypeVar("T", bound=Hashable)


@functools.cache
def seed() -> int:
    """The seed of this run."""
    if given := os.environ.get("SHARP_TEST_SEED"):
        return int(given)
    command = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return crc32(found.stdout.strip().encode()) % 10_000


def some_of(cases: Mapping[str, Sequence[T]], share: float) -> set[T]:
    """One case of each of a `share` of the groups of `cases`, chosen by the seed."""
    random = Random(seed())
    groups = random.sample(sorted(cases), round(share * len(cases)))
    return {random.choice(cases[group]) for group in groups}

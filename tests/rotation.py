"""A part of many cases for each run, by a seed that is printed and can be given.

`SHARP_TEST_SEED=17 pytest ...` runs the cases of seed 17 again. Without it the seed comes from the commit under
test: a commit always has the same cases, and another one has others.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from random import Random
from zlib import crc32

import pytest


@functools.cache
def seed() -> int:
    """The seed of this run."""
    if given := os.environ.get("SHARP_TEST_SEED"):
        return int(given)
    command = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return crc32(found.stdout.strip().encode()) % 10_000


def is_chosen(case: str, share: float) -> bool:
    """Whether a case is among the `share` of all that this run has."""
    return Random(f"{seed()} {case}").random() < share


def rotating(case: str, share: float) -> list[pytest.MarkDecorator]:
    """The marks of a case: slow, unless it is chosen."""
    return [] if is_chosen(case, share) else [pytest.mark.slow]

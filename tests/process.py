"""Runs code in a process of its own, for what a process can do once: importing, and being changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def output_of(code: str, *arguments: str) -> str:
    """What `code` prints in a fresh process that can import the tests; the test fails if the process does."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout

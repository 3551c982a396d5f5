"""Puts off Python's search for garbage while graphs are rewritten."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Put off the search for reference cycles: thousands of new nodes set it off, over all that the process holds.

    A pass over the objects of a loaded transformers takes as long as a phase of the passes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""Lets ``generate`` say it when its ``CompileConfig`` names this backend, whether or not it will compile anything.

On a CPU nothing would be compiled, and no backend be looked up.
"""

from __future__ import annotations

from types import ModuleType

from .on_import import on_import


def install() -> None:
    """Watch ``generate`` as soon as transformers is loaded."""
    on_import("transformers.generation.utils", _watch)


def _watch(utils: ModuleType) -> None:
    # This needs torch, which is there by now.
    from .transformers import generation

    generation.watch(utils)

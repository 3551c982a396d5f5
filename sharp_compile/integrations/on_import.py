"""Acts on a library as soon as it is loaded, now or later: the order of imports is to make no difference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

Execute = Callable[[ModuleType], None]
"""Runs the code of a module."""


def on_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Call ``act`` with the module ``name``: now if it is loaded, else once it has been, which this does not cause."""
    if name in sys.modules:
        act(sys.modules[name])
        return

    def and_act(execute: Execute) -> Execute:
        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            act(module)

        return execute_and_act

    around_import(name, and_act)


def around_import(name: str, wrap: Callable[[Execute], Execute]) -> None:
    """Have ``wrap`` of what executes the module ``name`` execute it, when it is loaded, which this does not cause."""
    sys.meta_path.insert(0, _Finder(name, wrap))


class _Finder:
    """Finds one module as it would be found otherwise, until it has been loaded with what is wrapped around it."""

    def __init__(self, name: str, wrap: Callable[[Execute], Execute]) -> None:
        self.name, self.wrap = name, wrap

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next((found for each in others if (found := each.find_spec(name, path, target)) is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = self.wrap(spec.loader.exec_module)

        def execute_once(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = execute_once  # type: ignore[method-assign]
        return spec

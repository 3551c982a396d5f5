"""Old names of modules, for one version: importing one warns, and gives the module by its new name."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "sharp_compile.batch": "sharp_compile.tools.batch",
    "sharp_compile.config": "sharp_compile.options",
    "sharp_compile.evaluation": "sharp_compile.tools.evaluation",
}
"""New names by old ones, their submodules among them."""


def install() -> None:
    """Let Python find modules by their old names."""
    sys.meta_path.insert(0, _MovedFinder())


class _MovedFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if _new_name(fullname) is None else spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of ``module``, which is empty."""
        old = module.__name__
        new = _new_name(old)
        assert new is not None
        warnings.warn(f"{old} is {new} now; the old name goes with the next version", FutureWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


def _new_name(name: str) -> str | None:
    for old, new in MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None

"""Modules by the names that they had in the version before."""

import importlib
import sys

import pytest

from sharp_compile import moved_modules


@pytest.mark.parametrize("old", [*moved_modules.MOVED, "sharp_compile.batch.run"])
def test_an_old_name_gives_the_same_module_and_warns(old):
    for name in [name for name in sys.modules if name == old or name.startswith(f"{old}.")]:
        del sys.modules[name]
    new = next(old.replace(*names) for names in moved_modules.MOVED.items() if old.startswith(names[0]))
    with pytest.warns(FutureWarning, match=f"{old} is {new} now"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(new)
    assert found.__spec__.name == new


def test_names_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"sharp_compile\.configs"):
        importlib.import_module("sharp_compile.configs")
    with pytest.raises(ModuleNotFoundError, match=r"tools\.batch\.nothing"), pytest.warns(FutureWarning):
        importlib.import_module("sharp_compile.batch.nothing")

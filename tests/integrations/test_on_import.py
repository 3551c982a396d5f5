"""Acting on a module when it is loaded, and not before."""

import importlib
import importlib.util
import sys

import pytest

from sharp_compile.integrations.on_import import around_import, on_import


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The name of a module that fails when it is first loaded."""
    (tmp_path / "fails_once.py").write_text("import sys\nif not hasattr(sys, 'tried'): sys.tried = 1; raise OSError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "tried", 1, raising=False)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield "fails_once"
    sys.modules.pop("fails_once", None)


def test_it_acts_once_whether_or_not_somebody_looked_or_failed_before(library):
    acted = []
    on_import(library, acted.append)
    assert importlib.util.find_spec(library) is not None, "as who asks whether it is installed"
    del sys.tried
    with pytest.raises(OSError):
        importlib.import_module(library)
    assert acted == []
    module = importlib.import_module(library)
    assert acted == [module]
    importlib.reload(module)
    assert acted == [module]
    on_import(library, acted.append)
    assert acted == [module, module], "at once, where it is loaded"


def test_several_may_act_on_one_module(library):
    acted = []
    on_import(library, lambda module: acted.append("first"))
    around_import(library, lambda execute: lambda module: (acted.append("around"), execute(module)))
    importlib.import_module(library)
    assert acted == ["around", "first"]

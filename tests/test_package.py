"""What `import sharp_compile` gives, and when."""

import subprocess
import sys

import pytest

import sharp_compile


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loads_no_torch_until_it_is_needed():
    code = "import sys, sharp_compile; print('torch' in sys.modules, sharp_compile.__version__)"
    assert run(code) == f"False {sharp_compile.__version__}"


def test_all_names_are_there_and_listed():
    code = "from sharp_compile import *; print(compile.__module__, explain.__module__, CannotPrune.__module__)"
    assert run(code) == "sharp_compile.api sharp_compile.explanation sharp_compile.passes.errors"
    assert set(sharp_compile.__all__) <= set(dir(sharp_compile))
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        sharp_compile.prune  # noqa: B018


def test_rules_of_the_package_are_known_before_any_is_loaded():
    code = "from sharp_compile.options import Config; print(Config.parse({'selector': 'fastv'}).selector)"
    assert run(code) == "fastv"
    taken = "import sharp_compile\ntry: sharp_compile.register_selector('fastv')\nexcept ValueError as e: print(e)"
    assert run(taken) == "a selector is named 'fastv' already; choose another name"

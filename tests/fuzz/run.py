"""Runs one fuzzer for as long as told, and tells how many cases it tried.

    python tests/fuzz/run.py options --seconds 600             cases of hypothesis; a finding is made small
    python tests/fuzz/run.py options --seconds 600 --atheris   cases by what they cover (pip install atheris)

A finding ends the run. What it found is kept as an `@example` of the test, or as a test with a name of its own.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Verbosity, settings

sys.path.insert(0, str(Path(__file__).parents[2]))

FUZZERS = {
    "options": ("tests.fuzz.test_options", "test_any_options", "check"),
    "json": ("tests.fuzz.test_options", "test_any_options_that_json_can_say", "read"),
    "video": ("tests.fuzz.test_video", "test_any_damage", "read"),
    "graphs": ("tests.fuzz.test_graphs", "test_any_graph", "check"),
}
"""For each name: a module, the test in it, and the function that the test hands each case to."""


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fuzzer", choices=FUZZERS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--corpus", type=Path, help="a folder of cases to begin with, for --atheris")
    asked = parser.parse_args()
    module_name, test, case = FUZZERS[asked.fuzzer]
    if asked.atheris:
        guided(module_name, test, case, asked)
        return
    module: Any = importlib.import_module(module_name)
    count = counted(module, case)
    began = time.monotonic()
    while time.monotonic() < began + asked.seconds:
        once = settings(
            deadline=None,
            max_examples=200,
            derandomize=False,
            verbosity=Verbosity.normal,
            suppress_health_check=list(HealthCheck),
        )(getattr(module, test))
        once()
    print(f"{asked.fuzzer}: {count()} cases in {time.monotonic() - began:.0f} s, nothing found", flush=True)


def counted(module: Any, name: str) -> Callable[[], int]:
    """Counts the calls of a function of a module from now on."""
    function, calls = getattr(module, name), 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return function(*args, **kwargs)

    setattr(module, name, counting)
    return lambda: calls


def guided(module_name: str, test: str, case: str, asked: argparse.Namespace) -> None:
    """Lets libFuzzer look for cases that run code which no case before them ran."""
    import atheris

    with atheris.instrument_imports(
        include=["sharp_compile.config", "sharp_compile.parts", "sharp_compile.demo.video"]
    ):
        module: Any = importlib.import_module(module_name)
    # Bytes are the case itself where the test takes bytes; else hypothesis makes one of them.
    takes_bytes = case == "read"
    target = getattr(module, case) if takes_bytes else getattr(module, test).hypothesis.fuzz_one_input
    given = [str(asked.corpus)] if asked.corpus else []
    atheris.Setup([sys.argv[0], f"-max_total_time={asked.seconds}", *given], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

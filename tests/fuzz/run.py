"""Runs one fuzzer for as long as told, and tells how many cases it tried.

    python tests/fuzz/run.py options --seconds 600             cases of hypothesis; a finding is made small
    python tests/fuzz/run.py options --seconds 600 --atheris   cases by what they cover (pip install atheris)

A finding ends the run. What it found is kept as an `@example` of the test, or as a test with a name of its own.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parents[2]))

FUZZERS = {
    "options": ("tests.fuzz.test_options", "CASES", "check"),
    "json": ("tests.fuzz.test_options", "BYTES", "read"),
    "video": ("tests.fuzz.test_video", "CASES", "read"),
    "graphs": ("tests.fuzz.test_graphs", "CASES", "check"),
}
"""For each name: a module, its strategy, and what checks a case; `read` takes bytes."""


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fuzzer", choices=FUZZERS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--corpus", type=Path, help="with --atheris: a folder of cases to begin with")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    module_name, cases, check = FUZZERS[asked.fuzzer]
    if asked.atheris:
        guided(module_name, cases, check, asked)
        return
    module = importlib.import_module(module_name)
    tried = 0

    @settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
    @given(getattr(module, cases))
    def once(case: Any) -> None:
        nonlocal tried, end
        if time.monotonic() < end:
            tried += 1
            try:
                getattr(module, check)(case)
            except BaseException:
                end = math.inf  # it is made small, however long that takes
                raise

    began = time.monotonic()
    end = began + asked.seconds
    while time.monotonic() < end:
        once()
        print(f"{asked.fuzzer}: {tried} cases in {time.monotonic() - began:.0f} s, nothing found", flush=True)


def guided(module_name: str, cases: str, check: str, asked: argparse.Namespace) -> None:
    """Lets libFuzzer look for cases that run code which no case before them ran."""
    import atheris

    with atheris.instrument_imports(include=["sharp_compile"]):
        module: Any = importlib.import_module(module_name)
    # Bytes are the case itself where the check takes bytes; else hypothesis makes a case of them.
    target = getattr(module, check)
    if check != "read":
        target = given(getattr(module, cases))(target).hypothesis.fuzz_one_input
    corpus = [str(asked.corpus)] if asked.corpus else []
    atheris.Setup([sys.argv[0], f"-max_total_time={asked.seconds}", *corpus], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

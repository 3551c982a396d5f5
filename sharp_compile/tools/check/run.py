"""The check from its first stage to the table, the file and the picture."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from sharp_compile.tools import results_io
from sharp_compile.tools.progress import Steps, progress

from . import CheckError, tables
from .rows import Counted, Fact, Prefill, Profile, Result, Scoring, Verdict
from .stage import Running, Stage

_COMPARED = 0.6
"""The part of the time that is over when all comparisons have to be. What they do not use is left to the measuring."""


@dataclass(frozen=True)
class Request:
    """What to check: on ``cuda`` or ``cpu``, in how many minutes, and which files to leave."""

    device: str
    minutes: float
    json: Path | None
    plot: Path | None
    trace: Path | None


def run(request: Request) -> bool:
    """Run all stages, print their tables and write the files; returns whether all that was compared is right.

    The JSON file is written anew after each result, so that a run which is cut off leaves what it has found.

    Raises:
        CheckError: for a device that is not there.
    """
    start = time.monotonic()
    console, found = Console(), list[Result]()
    _check_device(request.device)
    with progress(5) as shown:
        for result in _results(request, start, shown):
            found.append(result)
            if request.json is not None:
                _write(request, found)
    seconds = time.monotonic() - start
    for table in tables.all_of(found):
        console.print(table)
    right = not any(isinstance(each, Verdict) and each.right is False for each in found)
    console.print(tables.conclusion(found, seconds), style="green" if right else "red", markup=False)
    if request.plot is not None and any(isinstance(each, Prefill) for each in found):
        from .plot import plot

        plot(request.plot, found)
    return right


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise CheckError(f"--device cuda: torch {torch.__version__} finds no such device here; --device cpu is there")


def _results(request: Request, start: float, shown: Steps) -> Iterator[Result]:
    """Yield what the stages find, in their order.

    Those that compare run beside each other, and so does the one that counts operations; what is timed runs alone.
    """
    device, seconds = request.device, 60 * request.minutes
    alone = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    beside = alone | {"OMP_NUM_THREADS": "1"}
    parts = min(4, max(2, (os.cpu_count() or 2) // 2))
    interpreted = beside | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})
    with ExitStack() as stack:
        for running in [
            stack.enter_context(closing(Running(stage)))
            for stage in (
                Stage("environment", ".environment:facts", (device,), alone),
                Stage("kernels", ".kernels:check", (device,), interpreted),
                *(Stage("families", ".families:check", (device, part, parts), beside) for part in range(parts)),
                Stage("operations", ".prefill:count", (device,), beside),
            )
        ]:
            if running.stage.name != shown.what:
                shown.next(running.stage.name)
            yield from running.results(start + _COMPARED * seconds)
    shown.next("prefill")
    end = start + seconds
    # Of what is left the process needs some seconds to start and to end.
    arguments = device, max(0.0, end - time.monotonic() - 10), request.trace
    with closing(Running(Stage("prefill", ".prefill:measure", arguments, alone))) as running:
        yield from running.results(end)


def _write(request: Request, found: Sequence[Result]) -> None:
    kinds = {"verdicts": Verdict, "prefill": Prefill, "counted": Counted, "scoring": Scoring, "profile": Profile}
    content = {"facts": {each.name: each.value for each in found if isinstance(each, Fact)}} | {
        name: [asdict(each) for each in found if isinstance(each, kind)] for name, kind in kinds.items()
    }
    assert request.json is not None
    results_io.write(request.json, json.dumps(content, indent=2).encode() + b"\n")

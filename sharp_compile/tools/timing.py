"""Times of functions that run in turns."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import compilation_time_metrics
from torch.utils.benchmark.utils.timer import timer as synchronizing_clock

STAGES = ("dynamo", "passes", "aot", "inductor", "cpp")
"""Where the time of a first call goes: tracing and guards, this package, AOTAutograd, Inductor's own work, and what it
waits for (kernels that are built from C++ or by Triton, and loaded)."""


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the repeats, the range of their middle half, and what the first call took on top.

    ``stages`` is what that was spent on, by the names of ``STAGES``: nothing where nothing was compiled.
    """

    median: float
    spread: float
    compilation: float
    stages: Mapping[str, float]


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long one call takes, to the end of all that it started: by events on CUDA, else by the clock."""
    if not torch.cuda.is_available():
        return timeit.timeit(call, timer=synchronizing_clock, number=1)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def spent_compiling() -> dict[str, float]:
    """Return the seconds that this process has compiled so far, by stage, as PyTorch counts them itself."""
    counted = {name: sum(times) for name, times in compilation_time_metrics.items()}
    whole, backend, aot, inductor, built = (
        counted.get(name, 0.0)
        for name in (
            "_compile.compile_inner",
            "OutputGraph.call_user_compiler",
            "create_aot_dispatcher_function",
            "compile_fx.<locals>.fw_compiler_base",
            "PyCodeCache.load_by_key_path",
        )
    )
    return dict(zip(STAGES, (whole - backend, backend - aot, aot - inductor, inductor - built, built), strict=True))


def interleave(calls: Mapping[str, Callable[[], Any]], repeats: int, tick: Callable[[str], None]) -> dict[str, Timing]:
    """Time functions in turns, so that what else the machine does meanwhile hits all of them.

    Args:
        calls: the functions, by name; each is called once before, to compile.
        repeats: how often each is timed.
        tick: called with the name before each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    first, stages = {}, {}
    for name, call in calls.items():
        tick(name)
        before = spent_compiling()
        first[name] = seconds_of(call)
        stages[name] = {stage: total - before[stage] for stage, total in spent_compiling().items()}
    for _ in range(repeats):
        for name, call in calls.items():
            tick(name)
            seconds[name].append(seconds_of(call))
    timings = {}
    for name, taken in seconds.items():
        median = statistics.median(taken)
        low, _, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else (median, median, median)
        timings[name] = Timing(median, high - low, max(0.0, first[name] - median), stages[name])
    return timings

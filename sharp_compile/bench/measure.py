"""Times of functions that run in turns, and what they allocate."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as synchronizing_clock


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the repeats, the range of their middle half, and what the first call took on top."""

    median: float
    spread: float
    compilation: float


@dataclass(frozen=True)
class Machine:
    """What the machine does at its best: floating-point operations and bytes from and to memory, a second."""

    flops: float
    bandwidth: float

    def roofline(self, flops: int, bytes_moved: int) -> float:
        """The seconds below which no program gets (Williams et al., 2009)."""
        return max(flops / self.flops, bytes_moved / self.bandwidth)


def seconds_of(call: Callable[[], Any]) -> float:
    """How long one call takes, to the end of all that it started on the accelerator."""
    return timeit.timeit(call, timer=synchronizing_clock, number=1)


def interleave(calls: Mapping[str, Callable[[], Any]], repeats: int, tick: Callable[[str], None]) -> dict[str, Timing]:
    """Times functions in turns, so that what else the machine does meanwhile hits all of them.

    Args:
        calls: the functions, by name; each is called once before, to compile.
        repeats: how often each is timed.
        tick: called with the name before each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    first = {}
    for name, call in calls.items():
        tick(name)
        first[name] = seconds_of(call)
    for _ in range(repeats):
        for name, call in calls.items():
            tick(name)
            seconds[name].append(seconds_of(call))
    timings = {}
    for name, taken in seconds.items():
        median = statistics.median(taken)
        low, _, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else (median, median, median)
        timings[name] = Timing(median, high - low, max(0.0, first[name] - median))
    return timings


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes that a call has allocated at a time, beside what there was before it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def best_of(dtype: torch.dtype, device: str) -> Machine:
    """What a large matrix product and a large copy reach on this machine."""
    size = 8192 if device == "cuda" else 2048
    matrix = torch.randn(size, size, dtype=torch.float32).to(dtype=dtype, device=device)
    large = torch.empty(2**28 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(large)
    threads = torch.get_num_threads()
    product = Timer("a @ a", globals={"a": matrix}, num_threads=threads).adaptive_autorange()
    copying = Timer("b.copy_(a)", globals={"a": large, "b": target}, num_threads=threads).adaptive_autorange()
    return Machine(2 * size**3 / product.median, 2 * large.numel() / copying.median)

"""What functions allocate, where their time goes, and what a machine does at its best."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from sharp_compile.tools.timing import seconds_of

_KIND = re.compile(
    r"(?P<scoring>sharp_compile::)|(?P<attention>aten::_?\w*attention)|(?P<products>\w+::\w*(mm\b|linear|convolution))"
)
KINDS = ("products", "attention", "scoring", "rest")
"""What a prefill does: matrix products, fused attention, the kernels that score and select, and all else, which is
loops that Inductor fused, copies, and what Python takes."""


@dataclass(frozen=True)
class Machine:
    """What the machine does at its best: floating-point operations and bytes from and to memory, a second."""

    flops: float
    bandwidth: float

    def roofline(self, flops: int, bytes_moved: int) -> float:
        """Return the seconds below which no program gets (Williams et al., 2009)."""
        return max(flops / self.flops, bytes_moved / self.bandwidth)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call has allocated at a time, beside what there was before it."""
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


def seconds_by_kind(call: Callable[[], Any]) -> dict[str, float]:
    """Profile a call: return the seconds of each of ``KINDS``. What an operator calls counts as that operator."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler:
        whole = seconds_of(call)
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiler.events() or ():
        kind = _kind(event)
        if kind is not None and not any(_kind(parent) for parent in _above(event)):
            microseconds = event.device_time_total if torch.cuda.is_available() else event.cpu_time_total
            found[kind] += microseconds / 1e6
    found["rest"] = max(0.0, whole - sum(found.values()))
    return found


def _kind(event: FunctionEvent) -> str | None:
    match = _KIND.match(event.name)
    return None if match is None else match.lastgroup


def _above(event: FunctionEvent) -> Iterator[FunctionEvent]:
    parent = event.cpu_parent
    while parent is not None:
        yield parent
        parent = parent.cpu_parent


def best_of(dtype: torch.dtype, device: str) -> Machine:
    """Return what a large matrix product and a large copy reach on this machine."""
    size = 8192 if device == "cuda" else 2048
    matrix = torch.randn(size, size, dtype=torch.float32).to(dtype=dtype, device=device)
    large = torch.empty(2**28 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(large)
    threads = torch.get_num_threads()
    product = Timer("a @ a", globals={"a": matrix}, num_threads=threads).adaptive_autorange()
    copying = Timer("b.copy_(a)", globals={"a": large, "b": target}, num_threads=threads).adaptive_autorange()
    return Machine(2 * size**3 / product.median, 2 * large.numel() / copying.median)

"""Where the time of a prefill goes, kernel by kernel, and where the device waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .plan import Way
from .rows import Kernel, Profile

_MOST = 10
_WAIT_US = 10
"""Shorter gaps than this lie between any two kernels that are launched one after the other."""


def profiled(way: Way, visual_tokens: int, call: Callable[[], Any], file: Path | None) -> Iterator[Profile]:
    """Run a call under the profiler; yield what it shows, and leave all of it in ``file``."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        call()
        if cuda:
            torch.cuda.synchronize()
    if file is not None:
        profiler.export_chrome_trace(str(file))
    taken: dict[str, list[float]] = defaultdict(list)
    spans = []
    for event in profiler.events() or ():
        if cuda and event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            spans.append((event.time_range.start, event.time_range.end))
            taken[event.name].append(event.time_range.elapsed_us())
        elif not cuda:
            spans.append((event.time_range.start, event.time_range.end))
            name = "loops that Inductor fused" if "CompiledFxGraph" in event.name else event.name
            taken[name].append(event.self_cpu_time_total)
    if not spans:
        return
    busy, gaps = _union(spans)
    waits = [gap for gap in gaps if gap >= _WAIT_US]
    most = sorted(taken.items(), key=lambda each: -sum(each[1]))[:_MOST]
    assert way.retention is not None
    yield Profile(
        way=way.name,
        visual_tokens=visual_tokens,
        retention=way.retention,
        span_s=(max(end for _, end in spans) - min(start for start, _ in spans)) / 1e6,
        busy_s=busy / 1e6,
        waits=len(waits),
        longest_wait_s=max(waits, default=0.0) / 1e6,
        kernels=tuple(Kernel(name, len(each), sum(each) / 1e6) for name, each in most),
    )


def _union(spans: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """Return how much time spans cover, and the gaps between them."""
    covered, gaps, reached = 0.0, [], None
    for start, end in sorted(spans):
        if reached is None or start >= reached:
            if reached is not None:
                gaps.append(start - reached)
            covered, reached = covered + end - start, end
        elif end > reached:
            covered, reached = covered + end - reached, end
    return covered, gaps

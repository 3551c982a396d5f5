"""Where the time of a prefill goes, kernel by kernel, where the device waits, and which kernels attend."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from .plan import Way
from .rows import Kernel, Profile, Verdict

_MOST = 10
_WAIT_US = 10
"""Shorter gaps than this lie between any two kernels that are launched one after the other."""


_FLASH = {"cuda": re.compile("flash(?!.*combine)"), "cpu": re.compile("_flash_attention_for_cpu$")}
"""Kernels, on a CPU operators, that attend without a matrix of scores: one for each attention."""
_ATTENDS = re.compile("flash|fmha|attention|sdpa", re.IGNORECASE)
_UNDER_A_FORMULA = "sharp_compile::masked_attention"


def profiled(
    way: Way, visual_tokens: int, layers: int, call: Callable[[], Any], file: Path | None
) -> Iterator[Profile | Verdict]:
    """Run a call under the profiler; yield what it shows, and leave all of it in ``file``.

    Args:
        way: how the call runs.
        visual_tokens: of its prompt.
        layers: how many the decoder has.
        call: what to run.
        file: for chrome://tracing or Perfetto; None for none.
    """
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        call()
        if cuda:
            torch.cuda.synchronize()
    if file is not None:
        profiler.export_chrome_trace(str(file))
    events = profiler.events() or ()
    yield from _profile(way, visual_tokens, events, cuda)
    device = "cuda" if cuda else "cpu"
    yield _path(f"{way.in_words}, {visual_tokens:,} tokens", device, _attending(events, device), layers)


def _profile(way: Way, visual_tokens: int, events: Iterable[FunctionEvent], cuda: bool) -> Iterator[Profile]:
    taken: dict[str, list[float]] = defaultdict(list)
    spans = []
    for event in events:
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


def _attending(events: Iterable[FunctionEvent], device: str) -> Counter[str]:
    """Count the kernels of attention, on a CPU the operators but those under a formula."""
    if device == "cuda":
        kernels = (each.name for each in events if each.device_type == DeviceType.CUDA and not each.is_user_annotation)
        return Counter(_short(name) for name in kernels if _ATTENDS.search(name))
    operators = (each for each in events if each.name == _UNDER_A_FORMULA or _FLASH[device].search(each.name))
    return Counter(each.name for each in operators if not _is_under_a_formula(each.cpu_parent))


def _short(kernel: str) -> str:
    """Return the name of a kernel without its types: what of it says which one it is."""
    return re.split("[<(]", kernel.removeprefix("void "))[0]


def _is_under_a_formula(event: FunctionEvent | None) -> bool:
    return event is not None and (event.name == _UNDER_A_FORMULA or _is_under_a_formula(event.cpu_parent))


def _path(name: str, device: str, attending: Mapping[str, int], layers: int) -> Verdict:
    """Judge whether the flash kernel ran for all layers but the one at the cut, whose kept queries see all keys.

    A CPU has one operator for masks of all pairs too: there it is the peak of memory that shows them.
    """
    flash = sum(count for kernel, count in attending.items() if _FLASH[device].search(kernel))
    ran = ", ".join(f"{kernel} {count}x" for kernel, count in attending.items()) or "no kernel of attention"
    told = f"{flash} attentions of {layers} layers by a flash kernel, all but the cut's are due: {ran}"
    return Verdict("prefill", f"kernels of attention, {name}", flash >= layers - 1, told)


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

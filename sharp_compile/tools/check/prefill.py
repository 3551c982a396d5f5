"""How long a prefill takes: eager, compiled by Inductor, pruned, and replayed as a CUDA graph."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._dynamo.utils import counters

import sharp_compile
from sharp_compile.short_repr import brief
from sharp_compile.tools.bench.cost_model import account
from sharp_compile.tools.bench.decoders import Prompt, build, inputs
from sharp_compile.tools.bench.measure import peak_bytes
from sharp_compile.tools.timing import interleave
from sharp_compile.tools.weight_sharing import weight_sharing_copy

from . import peaks, scoring, trace
from .plan import LAYER, Round, Way, plan
from .rows import Counted, Fact, Prefill, Result, Verdict

Call = Callable[[], tuple[Any, Any]]
"""A prefill: returns the logits of the last position and the cache."""


def count(device: str) -> Iterator[Result]:
    """Yield the operations of each prefill that ``measure`` runs; nothing is computed, no device is touched."""
    what = plan(device)
    for visual, retention in what.counted():
        options = None if retention is None else {"retention": retention, "layer": LAYER}
        yield Counted(visual, retention, account(what.setup, visual, options).flops)


def measure(device: str, seconds: float, file: Path | None) -> Iterator[Result]:
    """Yield the times of all ways, a round at a time; after the first, where its pruned prefill spends its time.

    Of what is pruned: whether a call waits for the device, and whether its peak is right beside those before it.

    Args:
        device: ``cuda`` or ``cpu``.
        seconds: the time that there is: a way is left out if what has been compiled so far took longer than what is
            left.
        file: where to leave the profile, for chrome://tracing or Perfetto.
    """
    end = time.monotonic() + seconds
    what = plan(device)
    shape, dtype = what.setup.shape, str(what.setup.dtype).removeprefix("torch.")
    yield Fact("prefill", f"{what.model}, {what.setup.layers} layers of width {shape.hidden_size}, {dtype}")
    model = build(what.setup, device)
    longest, measured = 0.0, list[Prefill]()
    for number, each in enumerate(what.rounds):
        torch._dynamo.reset()
        given = inputs(replace(what.setup, mask=each.mask), each.visual_tokens, device)
        calls: dict[Way, Call] = {}
        for way in each.ways:
            if time.monotonic() + longest > end:
                yield _verdict(each, way, None, "no time was left")
                continue
            call: Call = partial(_run, _compiled(model, way), given)
            start = time.monotonic()
            verdict = _tried(each, way, call)
            longest = max(longest, time.monotonic() - start)
            if verdict is not None:
                yield verdict
            if verdict is None or verdict.right:
                calls[way] = call
                if way.retention is not None:
                    yield _waits(each, way, call, device)
        for row in _told("times", _timed(each, calls, what.repeats)):
            yield row
            if isinstance(row, Prefill):
                measured.append(row)
                yield from peaks.compared(measured)
        if number == 0:
            for way, call in calls.items():
                if way.retention is not None:
                    yield from _told("profile", trace.profiled(way, each.visual_tokens, what.setup.layers, call, file))
            embeddings = given["embeddings"]
            assert embeddings is not None
            yield from _told("scoring", scoring.scoring(device, what, embeddings.shape[1]))


def _told(name: str, results: Iterator[Result]) -> Iterator[Result]:
    """Yield results; what ends them is a verdict, and no end of the stage."""
    try:
        yield from results
    except torch.OutOfMemoryError:
        yield Verdict("prefill", name, None, "out of memory")
    except Exception as error:  # whatever a compiler, a driver or a profiler raises
        yield Verdict("prefill", name, False, f"{type(error).__name__}: {brief(error)}")


def _compiled(model: Prompt, way: Way) -> Prompt:
    """Return a twin of the model with the same weights, made ready to run in that way."""
    twin: Prompt = weight_sharing_copy(model)
    if way.name == "inductor":
        twin.compile()
    elif way.retention is not None:
        replayed = {"inductor": {"triton.cudagraphs": True}} if way.name != "sharp" else {}
        options = {"retention": way.retention, "layer": LAYER, "on_skip": "raise", **replayed}
        twin.compile(backend="sharp", options=options)
    return twin


def _run(model: Prompt, given: Mapping[str, Any]) -> tuple[Any, Any]:
    torch.compiler.cudagraph_mark_step_begin()  # what the call before returned is not read any more
    with torch.no_grad():
        return model(**given)


def _tried(each: Round, way: Way, call: Call) -> Verdict | None:
    """Run a way once, which compiles it: None if there is nothing to tell."""
    skipped = counters["inductor"]["cudagraph_skips"]
    before = len(sharp_compile.reports())
    try:
        with torch._dynamo.config.patch(recompile_limit=256):
            logits, _ = call()
        finite = bool(logits.isfinite().all())
    except torch.OutOfMemoryError:
        return _verdict(each, way, None, "out of memory")
    except Exception as error:  # whatever a compiler or a driver raises
        return _verdict(each, way, False, f"{type(error).__name__}: {brief(error)}")
    if not finite:
        return _verdict(each, way, False, "the logits are not finite")
    if way.retention is not None and not any(report.pruned for report in sharp_compile.reports()[before:]):
        return _verdict(each, way, False, "ran unpruned")
    if counters["inductor"]["cudagraph_skips"] > skipped:
        return _verdict(each, way, True, "Inductor makes no CUDA graph of it")
    return None


def _waits(each: Round, way: Way, call: Call, device: str) -> Verdict:
    """Judge whether a call that is compiled waits for the device, as torch itself sees it."""
    what = "no synchronisation: "
    if device == "cpu":
        return _verdict(each, way, None, "a CPU is no device to wait for", what)
    try:
        call()  # what is replayed is recorded now
        torch.cuda.set_sync_debug_mode("error")
        call()
    except torch.OutOfMemoryError:
        return _verdict(each, way, None, "out of memory", what)
    except Exception as error:  # whatever a compiler or a driver raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {brief(error)} ({place.filename}:{place.lineno}: {place.line})"
        return _verdict(each, way, False, told, what)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return _verdict(each, way, True, "one call in torch's mode that makes it an error", what)


def _verdict(each: Round, way: Way, right: bool | None, told: str, what: str = "") -> Verdict:
    mask = "with" if each.mask else "without"
    return Verdict("prefill", f"{what}{way.in_words}, {each.visual_tokens:,} tokens, {mask} a mask", right, told)


def _timed(each: Round, calls: Mapping[Way, Call], repeats: int) -> Iterator[Prefill]:
    """Yield the times of ways that are compiled, measured in turns."""
    timings = interleave({way.in_words: call for way, call in calls.items()}, repeats, lambda name: None)
    for way, call in calls.items():
        timing = timings[way.in_words]
        _, cache = call()
        lengths = [layer.keys.shape[-2] for layer in cache.layers]
        del cache
        yield Prefill(
            way=way.name,
            visual_tokens=each.visual_tokens,
            retention=way.retention,
            mask=each.mask,
            sequence_length=lengths[0],
            pruned_length=lengths[-1],
            median_s=timing.median,
            spread_s=timing.spread,
            first_token_s=median(_first_token(call) for _ in range(repeats)),
            peak_bytes=peak_bytes(call),
            repeats=repeats,
        )


def _first_token(call: Call) -> float:
    """Return the seconds until the host knows the first token."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    logits, _ = call()
    int(logits[0, -1].argmax())
    return time.perf_counter() - start

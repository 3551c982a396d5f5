"""Builds, runs and counts what the benchmark compares."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

import sharp_compile
from sharp_compile.options import Config
from sharp_compile.tools import results_io
from sharp_compile.tools.progress import progress
from sharp_compile.tools.suppressed_logs import suppress_logs
from sharp_compile.tools.timing import STAGES, interleave, seconds_of
from sharp_compile.tools.weight_sharing import weight_sharing_copy

from .cost_model import Account, account
from .decoders import SHAPES, Prompt, Setup, build, inputs
from .handpatched import patch
from .measure import KINDS, Machine, best_of, peak_bytes, seconds_by_kind
from .rows import MetaRow, PeakRow, Row
from .vision import TowerShape


@dataclass(frozen=True)
class Request:
    """What is asked for. Every cut, a layer and a retention or several stages, is combined with every length."""

    model: str
    width: int | None
    layers: int | None
    tokens: Sequence[int]
    cuts: Sequence[Mapping[str, Any]]
    selectors: Sequence[str]
    dtype: str
    repeats: int
    decode: int
    eager: bool
    vision: bool
    mask: bool

    @property
    def depth(self) -> int:
        """How many layers the decoder has."""
        return self.layers or SHAPES[self.model].num_hidden_layers

    @functools.cached_property
    def setup(self) -> Setup:
        """The model and the kind of prompt; a vision tower is scaled as the decoder is."""
        whole = SHAPES[self.model]
        shape = whole if self.width is None else whole.scaled(self.width)
        tower = None
        if self.vision:
            tower = TowerShape().scaled(shape.hidden_size / whole.hidden_size, self.depth / whole.num_hidden_layers)
        return Setup(shape, self.depth, getattr(torch, self.dtype), tower, self.mask)


@dataclass
class _Way:
    """One way to run the model: its name, the backend's options (None: not ours), and the model, ready to run."""

    name: str
    options: Mapping[str, Any] | None
    model: Prompt
    passes: list[float] = field(default_factory=list)
    distinct_layers: int | None = None


def run(request: Request) -> list[Row]:
    """Measure and prints; returns the rows."""
    suppress_logs()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(request.setup, device)
    machine = best_of(request.setup.dtype, device)
    steps = _steps(request)
    console, rows = Console(), []
    _compile_anything(device)
    # All ways share the code of one function, and the limit is the function's.
    with progress(steps) as shown, torch._dynamo.config.patch(recompile_limit=256):
        for visual in request.tokens:
            rows += _measured(request, model, machine, visual, device, shown.next)
    for table in _tables(request, rows):
        console.print(table)
    console.print(
        f"{results_io.machine()}. Medians of {request.repeats} interleaved repeats. speed-up: over plain Inductor. "
        "limit: FLOPs of the unpruned model over those of the row. roofline: the time that the products and attention "
        "would take at the best rates of this machine, measured: "
        f"{machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s."
    )
    return rows


def _compile_anything(device: str) -> None:
    """What the first compilation of a process takes, whatever it compiles, counts for no way."""
    torch.compile(lambda x: (x + 1).sum(), dynamic=False)(torch.ones(2, device=device))


def _steps(request: Request) -> int:
    ways = 1 + request.eager * (1 + len(request.cuts)) + 2 * len(request.cuts) * len(request.selectors)
    return len(request.tokens) * ways * (request.repeats + 2)


def _measured(
    request: Request, model: Prompt, machine: Machine, visual: int, device: str, tick: Callable[[str], None]
) -> list[Row]:
    """Return all ways at one length."""
    given = inputs(request.setup, visual, device)
    ways = list(_ways(request, model, visual))
    full = account(request.setup, visual, None)
    accounts = {way.name: full if way.options is None else account(request.setup, visual, way.options) for way in ways}
    torch._dynamo.reset()
    calls = {way.name: _call(way, given) for way in ways}
    timings = interleave(calls, request.repeats, tick)
    plain = timings["inductor"].median
    rows = []
    for way in ways:
        tick(way.name)
        counted, timing = accounts[way.name], timings[way.name]
        limit, speedup = full.flops / counted.flops, plain / timing.median
        cut = Config.parse(way.options).cuts[-1] if way.options is not None else None
        rows.append(
            Row(
                name=way.name.split(":")[0],
                model=request.model,
                layers=request.depth,
                hidden_size=request.setup.shape.hidden_size,
                dtype=request.dtype,
                vision=request.vision,
                selector=None if way.options is None else way.options["selector"],
                retention=None if cut is None else cut.numerator / cut.denominator,
                layer=None if cut is None else cut.layer,
                sequence_length=counted.sequence_length,
                pruned_length=counted.pruned_length,
                median_s=timing.median,
                iqr_s=timing.spread,
                speedup_vs_inductor=speedup,
                flops=counted.flops,
                flop_limit=limit,
                fraction_of_limit=speedup / limit,
                bytes_moved=counted.bytes_moved,
                roofline_s=machine.roofline(counted.flops, counted.bytes_moved),
                peak_bytes=peak_bytes(calls[way.name]),
                seconds_by_kind=seconds_by_kind(calls[way.name]),
                compile_s=timing.compilation if way.name not in ("eager", "handpatched") else 0.0,
                compile_stages=dict(timing.stages),
                passes_s=sum(way.passes) if way.passes else None,
                distinct_layers=way.distinct_layers,
                decode_s_per_token=_decode(way, given, request.decode) if request.decode else None,
            )
        )
    return rows


def _ways(request: Request, model: Prompt, visual: int) -> Iterator[_Way]:
    """Yield twins of the model, one for each way, sharing its weights."""
    if request.eager:
        yield _Way("eager", None, model)
    plain = weight_sharing_copy(model)
    plain.compile()
    yield _Way("inductor", None, plain)
    for number, cut in enumerate(request.cuts):
        mark = f":{number}" if len(request.cuts) > 1 else ""
        if request.eager and "stages" not in cut:
            patched = weight_sharing_copy(model)
            parsed = Config.parse(cut).cuts[0]
            patch(patched, parsed.layer, parsed.kept(visual))
            yield _Way(f"handpatched{mark}", {**cut, "selector": "fastv", "hoist": False}, patched)
        for selector in request.selectors:
            which = mark + (f":{selector}" if len(request.selectors) > 1 else "")
            for name, hoist in (("sharp", True), ("sharp-end", False)):
                options = {**cut, "selector": selector, "hoist": hoist}
                short = weight_sharing_copy(model)
                short.compile(backend="sharp", options={**options, "on_skip": "raise"})
                yield _Way(f"{name}{which}", options, short)


def _call(way: _Way, given: Mapping[str, Any]) -> Callable[[], Any]:
    def call() -> Any:
        before = len(sharp_compile.reports())
        with torch.no_grad():
            result = way.model(**given)
        made = sharp_compile.reports()[before:]
        way.passes += [report.passes_s for report in made if report.passes_s is not None]
        way.distinct_layers = max((report.distinct_layers or 0 for report in made), default=0) or way.distinct_layers
        return result

    return call


def _decode(way: _Way, given: Mapping[str, Any], steps: int) -> float:
    """Return seconds of a decoding step: the median of `steps`, the first three of a cache left out (they compile)."""
    with torch.no_grad():
        _, cache = way.model(**given)
        step = given["embeddings"][:, -1:]
        mask = given["attention_mask"]
        taken = []
        for _ in range(3 + steps):
            mask = None if mask is None else torch.cat([mask, mask[:, :1]], 1)
            taken.append(seconds_of(functools.partial(way.model, step, mask, past_key_values=cache)))
    return statistics.median(taken[3:])


def count(request: Request) -> list[MetaRow]:
    """Count without running, and prints; returns the rows."""
    rows = []
    for visual in request.tokens:
        full = account(request.setup, visual, None)
        rows.append(_meta_row(request, "unpruned", full, full, 1.0, None))
        for cut in request.cuts:
            for selector in request.selectors:
                options = {**cut, "selector": selector}
                last = Config.parse(options).cuts[-1]
                counted = account(request.setup, visual, options)
                retention = last.numerator / last.denominator
                rows.append(_meta_row(request, "sharp", counted, full, retention, last.layer))
    title = f"{request.model}, {request.depth} layers, {request.dtype}: counted, not run"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (
        "name",
        "kept",
        "layer",
        "S",
        "S'",
        "TFLOPs",
        "of full",
        "GB moved",
        "cache GB",
        "peak GB",
        "S x S",
    ):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.retention:.0%}",
            "" if row.layer is None else str(row.layer),
            f"{row.sequence_length:,}",
            f"{row.pruned_length:,}",
            f"{row.flops / 1e12:,.1f}",
            f"{row.flops_share:.1%}",
            f"{row.bytes_moved / 1e9:,.1f}",
            f"{row.kv_bytes / 1e9:,.2f}",
            f"{row.activation_peak_bytes / 1e9:,.2f}",
            str(row.square_tensors),
        )
    Console().print(table)
    return rows


def _meta_row(
    request: Request, name: str, counted: Account, full: Account, retention: float, layer: int | None
) -> MetaRow:
    return MetaRow(
        name=name,
        model=request.model,
        layers=request.depth,
        retention=retention,
        layer=layer,
        sequence_length=counted.sequence_length,
        pruned_length=counted.pruned_length,
        flops=counted.flops,
        flops_share=counted.flops / full.flops,
        bytes_moved=counted.bytes_moved,
        kv_bytes=counted.kv_bytes,
        activation_peak_bytes=counted.activation_peak_bytes,
        square_tensors=counted.square_tensors,
    )


def fits(rows: Sequence[Row | PeakRow]) -> list[dict[str, Any]]:
    """Least-squares fits ``y = a S + b S^2`` of time and peak memory, for each way that was run at two lengths or more.

    ``seconds_per_token`` is a of the time, ``seconds_per_pair`` is b, and ``exponent`` the slope of the logarithms;
    ``peak_bytes_per_token``, ``peak_bytes_per_pair`` and ``peak_exponent`` are those of the memory.
    """
    found = []
    keys = dict.fromkeys((row.name, row.selector, row.retention, row.layer) for row in rows)
    for key in keys:
        of_way = [row for row in rows if (row.name, row.selector, row.retention, row.layer) == key]
        length = np.array([row.sequence_length for row in of_way], dtype=float)
        if len(set(length)) > 1:
            fit: dict[str, Any] = dict(zip(("name", "selector", "retention", "layer"), key, strict=True))
            if isinstance(of_way[0], Row):
                seconds = np.array([row.median_s for row in of_way if isinstance(row, Row)])
                fit |= zip(("seconds_per_token", "seconds_per_pair", "exponent"), _fit(length, seconds), strict=True)
            peaks = np.array([row.peak_bytes for row in of_way], dtype=float)
            names = "peak_bytes_per_token", "peak_bytes_per_pair", "peak_exponent"
            found.append(fit | dict(zip(names, _fit(length, peaks), strict=True)))
    return found


def _fit(length: Any, values: Any) -> tuple[float, float, float]:
    (per_token, per_pair), *_ = np.linalg.lstsq(np.stack([length, length**2], 1), values, rcond=None)
    return per_token, per_pair, np.polyfit(np.log(length), np.log(values), 1)[0]


def _tables(request: Request, rows: Sequence[Row]) -> Iterator[Table]:
    """Yield the speeds, what else there is to know of each way, and profiles."""
    setup = request.setup
    title = f"{request.model}: {request.depth} layers of width {setup.shape.hidden_size}, {request.dtype}"
    if setup.tower is not None:
        title += f", after a vision tower of {setup.tower.num_hidden_layers} layers"
    times = Table(title=f"{title}: prefill", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    others = Table(title="Memory, decoding", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    where = Table(title="Where the time of a prefill goes", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    first = Table(title="Where the time of the first call goes, s", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for table, headings in (
        (times, ("seconds", "speed-up", "limit", "of it", "of roofline")),
        (others, ("peak MB", "decode ms")),
        (first, ("whole", *STAGES, "layers")),
        (where, KINDS),
    ):
        for heading in ("way", "cut", "tokens", *headings):
            table.add_column(heading, justify="right" if heading in headings else "left", no_wrap=True)
    for row in rows:
        kept = "" if row.retention is None else f"{row.selector}, {row.retention:.0%} after {row.layer}"
        way = row.name, kept, f"{row.sequence_length}>{row.pruned_length}" if kept else f"{row.sequence_length}"
        times.add_row(
            *way,
            f"{row.median_s:.3f}",
            f"{row.speedup_vs_inductor:.2f}",
            f"{row.flop_limit:.2f}",
            f"{row.fraction_of_limit:.0%}",
            f"{row.roofline_s / row.median_s:.0%}",
        )
        others.add_row(
            *way,
            f"{row.peak_bytes / 1e6:.0f}",
            "" if row.decode_s_per_token is None else f"{row.decode_s_per_token * 1e3:.1f}",
        )
        if row.compile_s:
            stages = (f"{row.compile_stages[stage]:.1f}" for stage in STAGES)
            layers = row.layers if row.distinct_layers is None else row.distinct_layers
            first.add_row(*way, f"{row.compile_s:.1f}", *stages, str(layers))
        whole = sum(row.seconds_by_kind.values())
        where.add_row(*way, *(f"{row.seconds_by_kind[kind] / whole:.0%}" for kind in KINDS))
    yield times
    yield others
    yield first
    yield where

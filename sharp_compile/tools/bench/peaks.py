"""Measures the memory of pruned prefills alone: of longer prompts than plain Inductor can be timed with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from sharp_compile.options import Config
from sharp_compile.tools.progress import progress
from sharp_compile.tools.suppressed_logs import suppress_logs
from sharp_compile.tools.weight_sharing import weight_sharing_copy

from .decoders import Prompt, build, inputs
from .measure import peak_bytes
from .rows import PeakRow
from .run import Request


def measure_peaks(request: Request) -> list[PeakRow]:
    """Run each prefill twice, the second time for its memory, and print it; returns the rows."""
    suppress_logs()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, rows = build(request.setup, device), []
    cases = [*product(request.tokens, request.cuts, request.selectors)]
    with progress(len(cases)) as shown, torch._dynamo.config.patch(recompile_limit=256), torch.no_grad():
        for visual, cut, selector in cases:
            rows.append(_measured(request, model, visual, {**cut, "selector": selector}))
            shown.next(f"{rows[-1].sequence_length} tokens")
    Console().print(_table(request, rows))
    return rows


def _measured(request: Request, model: Prompt, visual: int, options: dict[str, Any]) -> PeakRow:
    short = weight_sharing_copy(model)
    short.compile(backend="sharp", options={**options, "on_skip": "raise"})
    given = inputs(request.setup, visual, str(next(model.parameters()).device))
    _, cache = short(**given)
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    del cache
    last = Config.parse(options).cuts[-1]
    return PeakRow(
        name="sharp",
        model=request.model,
        layers=request.depth,
        hidden_size=request.setup.shape.hidden_size,
        dtype=request.dtype,
        mask=request.mask,
        selector=options["selector"],
        retention=last.numerator / last.denominator,
        layer=last.layer,
        sequence_length=lengths[0],
        pruned_length=lengths[-1],
        peak_bytes=peak_bytes(functools.partial(short, **given)),
    )


def _table(request: Request, rows: Sequence[PeakRow]) -> Table:
    title = f"{request.model}: {request.depth} layers of width {request.setup.shape.hidden_size}, peak of a prefill"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("cut", "tokens", "peak MB", "bytes a token"):
        table.add_column(heading, justify="left" if heading == "cut" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.selector}, {row.retention:.0%} after {row.layer}",
            f"{row.sequence_length}>{row.pruned_length}",
            f"{row.peak_bytes / 1e6:,.0f}",
            f"{row.peak_bytes / row.sequence_length:,.0f}",
        )
    return table

"""The two pictures of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .rows import Row


def plot_time(path: Path, rows: Sequence[Row]) -> None:
    """Draw seconds of a prefill against tokens, a curve for each way, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, of_way in _by_way(rows).items():
        ordered = sorted(of_way, key=lambda row: row.sequence_length)
        axes.errorbar(
            [row.sequence_length for row in ordered],
            [row.median_s for row in ordered],
            yerr=[row.iqr_s / 2 for row in ordered],
            marker="o",
            capsize=3,
            label=label,
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens of the prompt", ylabel="prefill, s")
    _finish(figure, axes, rows, path)


def plot_speedup(path: Path, rows: Sequence[Row]) -> None:
    """Draw the speed-up over Inductor against retention, and what the FLOPs allow, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    longest = max(row.sequence_length for row in rows)
    pruned = [row for row in rows if row.retention is not None and row.sequence_length == longest]
    kinds = dict.fromkeys((row.name, row.selector, row.layer) for row in pruned)
    for number, kind in enumerate(kinds):
        of_kind = sorted(
            (row for row in pruned if (row.name, row.selector, row.layer) == kind),
            key=lambda row: row.retention or 0,
        )
        kept = [100 * (row.retention or 0) for row in of_kind]
        name, selector, layer = kind
        color = f"C{number}"
        axes.plot(
            kept,
            [row.speedup_vs_inductor for row in of_kind],
            color=color,
            marker="o",
            label=f"{name}, {selector}, layer {layer}",
        )
        axes.plot(kept, [row.flop_limit for row in of_kind], color=color, linestyle="--", linewidth=1)
    axes.plot([], [], color="black", linestyle="--", linewidth=1, label="what the FLOPs allow")
    axes.set(xlabel="visual tokens kept, %", ylabel="times as fast as Inductor")
    axes.set_ylim(bottom=0)
    _finish(figure, axes, rows, path)


def _by_way(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        cut = "" if row.retention is None else f", {row.retention:.0%} after layer {row.layer}, {row.selector}"
        found.setdefault(row.name + cut, []).append(row)
    return found


def _finish(figure, axes, rows: Sequence[Row], path: Path) -> None:  # type: ignore[no-untyped-def]
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    row = rows[0]
    axes.set_title(f"{row.model}: {row.layers} layers of width {row.hidden_size}, {row.dtype}", fontsize="medium")
    figure.savefig(path, dpi=150)

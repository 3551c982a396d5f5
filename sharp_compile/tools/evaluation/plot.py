"""The plot of an evaluation: accuracy against retention, one curve for each selector."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .rows import Row


def accuracy_plot(rows: Sequence[Row]) -> bytes:
    """A PNG with a panel for each layer and world; bars are standard errors, the dashed line is the full model."""
    worlds = list(dict.fromkeys(row.world for row in rows))
    layers = list(dict.fromkeys(row.layer for row in rows if row.layer is not None))
    with style.context("petroff10"):
        figure = Figure((4.2 * len(worlds), 0.6 + 3.8 * len(layers)), layout="constrained")
        panels = figure.subplots(len(layers), len(worlds), sharey="row", squeeze=False)
        for layer, line in zip(layers, panels, strict=True):
            for world, axes in zip(worlds, line, strict=True):
                _panel(axes, [row for row in rows if row.world == world and row.layer in (None, layer)])
                axes.set_title(f"{world}, cut after layer {layer}")
            line[0].set_ylabel("accuracy, %")
        for axes in panels[-1]:
            axes.set_xlabel("visual tokens kept, %")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    return image.getvalue()


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    for selector in dict.fromkeys(row.selector for row in rows):
        curve = sorted((row for row in rows if row.selector == selector), key=lambda row: row.retention)
        if selector == "none":
            axes.axhline(curve[0].accuracy, color="black", linestyle="--", label="full model")
        else:
            axes.errorbar(
                [100 * row.retention for row in curve],
                [row.accuracy for row in curve],
                [row.stderr for row in curve],
                marker="o",
                capsize=3,
                linewidth=2.5 if selector == "sharp" else 1.2,
                label=selector,
            )
    ticks = sorted({100 * row.retention for row in rows if row.selector != "none"})
    axes.set(xscale="log", xticks=ticks, xticklabels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)

"""The plot of an evaluation: accuracy against retention, one curve for each selector."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import style
from matplotlib.figure import Figure

from .rows import Row


def accuracy_plot(rows: Sequence[Row]) -> bytes:
    """A PNG with a panel for each world; bars are standard errors, the dashed line is the full model."""
    worlds = list(dict.fromkeys(row.world for row in rows))
    with style.context("petroff10"):
        figure = Figure((4.2 * len(worlds), 4.4), layout="constrained")
        for axes, world in zip(figure.subplots(1, len(worlds), sharey=True, squeeze=False)[0], worlds, strict=True):
            shown = [row for row in rows if row.world == world]
            for selector in dict.fromkeys(row.selector for row in shown):
                curve = sorted((row for row in shown if row.selector == selector), key=lambda row: row.retention)
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
            ticks = sorted({100 * row.retention for row in shown if row.selector != "none"})
            axes.set(
                title=world,
                xlabel="visual tokens kept, %",
                xscale="log",
                xticks=ticks,
                xticklabels=[f"{tick:g}" for tick in ticks],
            )
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("accuracy, %")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    return image.getvalue()

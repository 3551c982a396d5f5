"""Draw the graph of a real model before and after pruning: every node, by how many tokens its result has.

    python examples/draw_graphs.py docs/graphs.png

The model is the small one of `sharp-compile eval`. The graph before is what any backend of Dynamo gets; the one after
is what the backend's option `inner` gets.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch.fx import GraphModule, Node

import sharp_compile
from sharp_compile.tools.html_report.show import rendered
from sharp_compile.tools.suppressed_logs import suppress_logs

LAYER = 1
BANDS = ("#eef2f4", "#dfe6ea")
FULL, SHORT, NEITHER = "#3b4a5a", "#0b7a75", "#c3cad1"


def main() -> None:
    """Capture both graphs and draw them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the file to write")
    picture = parser.parse_args().picture
    suppress_logs()
    asked = rendered("crowded")

    before = largest_graph(asked.model, asked.inputs, None)
    after = largest_graph(asked.model, asked.inputs, {"layer": LAYER})
    report = next(report for report in sharp_compile.reports() if report.pruned)
    length, short = int(report.sequence_length or 0), int(report.pruned_length or 0)

    figure, axes = plt.subplots(1, 2, figsize=(13, 4.2), sharey=True, layout="constrained")
    for axis, graph, title in ((axes[0], before, "before"), (axes[1], after, f"after: cut after layer {LAYER}")):
        draw(axis, graph, length, short)
        axis.set_title(f"{title} ({len(graph)} nodes)")
    axes[0].set_ylabel("tokens of a node's result")
    axes[1].legend(loc="center right", markerscale=3)
    figure.savefig(picture, dpi=110)


@dataclass(frozen=True)
class Ran:
    """A node of a graph as it ran: the decoder layer it comes from, None if from none, and the shape of its result."""

    layer: int | None
    shape: tuple[int, ...]


class Recorder(torch.fx.Interpreter):
    """Runs a graph node by node, and notes what ran."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.ran: list[Ran] = []

    def run_node(self, node: Node) -> Any:
        """Run one node."""
        result = super().run_node(node)
        if node.op not in ("placeholder", "get_attr", "output"):
            self.ran.append(Ran(decoder_layer(node), tuple(getattr(result, "shape", ()))))
        return result


def largest_graph(model: torch.nn.Module, inputs: dict[str, Any], options: dict[str, Any] | None) -> list[Ran]:
    """The graph of one call with most nodes: with the backend's options, or for None as Dynamo makes it."""
    recorders: list[Recorder] = []

    def record(graph: GraphModule, _: Any) -> Callable[..., Any]:
        recorders.append(Recorder(graph))
        return recorders[-1].run

    torch.compiler.reset()
    sharp_compile.reset()
    how: dict[str, Any] = {"backend": record}
    if options is not None:
        how = {"backend": "sharp", "options": {**options, "inner": record}}
    with torch.no_grad():
        torch.compile(model, **how)(**inputs)
    return max((recorder.ran for recorder in recorders), key=len)


def draw(axis: Axes, ran: list[Ran], length: int, short: int) -> None:
    """Draw one graph: a dot for each node, a band for each decoder layer."""
    points: dict[str, list[tuple[int, int]]] = {FULL: [], SHORT: [], NEITHER: []}
    bands: dict[int, list[int]] = {}
    for place, node in enumerate(ran):
        # By size alone: good enough to look at, and not how a pass does it.
        tokens = length if length in node.shape else short if short in node.shape else 0
        points[{length: FULL, short: SHORT}.get(tokens, NEITHER)].append((place, tokens))
        if node.layer is not None:
            bands.setdefault(node.layer, []).append(place)
    for layer, places in bands.items():
        axis.axvspan(min(places), max(places), color=BANDS[layer % 2], zorder=0)
        axis.text((min(places) + max(places)) / 2, length * 1.06, f"layer {layer}", ha="center", fontsize=8)
    names = {FULL: f"all {length} tokens", SHORT: f"{short} kept tokens", NEITHER: "no token axis"}
    for colour, found in points.items():
        if found:
            axis.scatter(*zip(*found, strict=True), s=5, color=colour, label=names[colour])
    axis.set_ylim(-length * 0.05, length * 1.15)
    axis.set_xlabel("nodes in the order in which they run")


def decoder_layer(node: Node) -> int | None:
    """The number of the decoder layer that a node comes from, by the names of the modules around it."""
    for name, _ in node.meta.get("nn_module_stack", {}).values():
        if found := re.search(r"language_model.*layers\W+(?:_modules\W+)?(\d+)", str(name)):
            return int(found[1])
    return None


if __name__ == "__main__":
    main()

"""The picture of the check: how long each way takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .rows import Fact, Prefill, Result


def plot(path: Path, found: Sequence[Result]) -> None:
    """Draw the prefills as bars, a panel for each prompt, into a PNG file."""
    from matplotlib.figure import Figure

    prefills = [each for each in found if isinstance(each, Prefill)]
    facts = {each.name: each.value for each in found if isinstance(each, Fact)}
    prompts = sorted({(each.visual_tokens, not each.mask) for each in prefills})
    figure = Figure(figsize=(5.5 * min(2, len(prompts)), 2.6 * -(-len(prompts) // 2) + 0.6), layout="constrained")
    panels = figure.subplots(-(-len(prompts) // 2), min(2, len(prompts)), squeeze=False).flatten()
    for axes in panels[len(prompts) :]:
        axes.remove()
    for axes, (visual, unmasked) in zip(panels, prompts, strict=False):
        ways = [each for each in prefills if (each.visual_tokens, not each.mask) == (visual, unmasked)]
        names = [each.way if each.retention is None else f"{each.way}, {each.retention:.0%}" for each in ways]
        colors = ["0.6" if each.retention is None else "C0" for each in ways]
        bars = axes.barh(names, [1e3 * each.median_s for each in ways], color=colors)
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel="prefill, ms", title=f"{visual:,} visual tokens, {'no' if unmasked else 'with a'} mask")
    figure.suptitle(f"{facts.get('prefill', '')}\n{facts.get('machine', '')}", fontsize="medium")
    figure.savefig(path, dpi=150)

"""What position alone explains, measured on a video without content."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import report
from .shown import shown

_one_at_a_time = threading.Lock()


@dataclass(frozen=True, eq=False)
class Calibration:
    """The attention that text pays to visual tokens without content, by their place in the video.

    Attributes:
        layer: the decoder layer that it was measured at.
        profiles: ``[V]`` float32 for each number V of visual tokens that was measured: the attention
            probability of the text behind the video, mean over its tokens, the heads and the rows.
    """

    layer: int
    profiles: Mapping[int, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Calibration(layer={shown(self.layer)}, profiles={shown(self.profiles)})"

    def table(self) -> tuple[Tensor, Tensor]:
        """All profiles as one ``[N, V]`` float32, padded with zeros, and their lengths ``[N]`` int64."""
        lengths = sorted(self.profiles)
        profiles = torch.zeros(len(lengths), max(lengths))
        for row, length in enumerate(lengths):
            profiles[row, :length] = self.profiles[length]
        return profiles, torch.tensor(lengths)


def is_measurement(profile: object, visual: int) -> bool:
    """Whether `profile` is what a `Calibration` holds for a number of visual tokens."""
    if not isinstance(profile, Tensor) or profile.shape != (visual,) or not profile.is_floating_point():
        return False
    return bool(profile.isfinite().all())


def calibrate(model: torch.nn.Module, /, *layouts: Mapping[str, Any], layer: int = 1, **inputs: Any) -> Calibration:
    """Measures what position alone explains, by running videos without content.

        black = processor(text=prompt, videos=numpy.zeros_like(video), return_tensors="pt")
        profile = sharp_compile.calibrate(model, **black)
        model.compile(backend="sharp", options={"debias": profile})

    Each layout (a number of visual tokens) is run once, unpruned, in eager mode. A video of a layout that was
    not measured is given the nearest one, stretched to its length.

    Args:
        model: a video model, compiled or not.
        layouts: inputs of one forward call each, with content-free frames.
        layer: the layer that will be scored at, as in the options.
        inputs: one more layout, by keyword.

    Returns:
        What to give as the option ``debias``.

    Raises:
        ValueError: if there are no inputs.
        CannotPrune: if the model can't be pruned at `layer` for these inputs, with the reason.
    """
    if not (layouts or inputs):
        raise ValueError("calibrate needs the inputs of a forward call, with content-free frames")
    profiles: dict[int, Tensor] = {}
    options: dict[str, Any] = {"retention": 1.0, "layer": layer, "segment": None, "debias": None, "dedup": None}
    from .backend import sharp

    # Not the module itself: that may be compiled, with other options.
    measured = torch.compile(model.forward, backend=sharp, options=options | {"inner": "eager", "on_skip": "raise"})
    for layout in (*layouts, *([inputs] if inputs else ())):
        # Dynamo may share a graph, and so its report, with calibrations of other threads.
        with _one_at_a_time, report.watch() as graphs, torch.no_grad():
            measured(**layout)
            told = [graph.scores for graph in graphs if graph.scores is not None]
        for scores in told:
            per_row = [row[row.isfinite()] for row in scores.float().cpu()]
            if len({len(row) for row in per_row}) > 1:
                raise ValueError("the rows of a calibration batch must have the same number of visual tokens")
            profiles[len(per_row[0])] = torch.stack(per_row).mean(0)
    return Calibration(layer, profiles)

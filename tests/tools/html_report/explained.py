"""An explanation made by hand: two rows of four frames of 6 x 6 tokens, of which known ones are kept."""

import numpy as np
import torch

from sharp_compile.explanation import CachedLayer, Explanation
from sharp_compile.options import Cut
from sharp_compile.report import GraphReport

ROWS, FRAMES, SIDE, BEFORE, BEHIND = 2, 4, 6, 3, 5
VISUAL = FRAMES * SIDE * SIDE
LENGTH = BEFORE + VISUAL + BEHIND
CUTS = (Cut(1, 1, 2), Cut(3, 1, 8))
KEPT = VISUAL // 8


def explanation(batch=ROWS, segment=True, **changes):
    """Scores fall from the first visual token on; the first ones are kept."""
    scores = torch.full((batch, LENGTH), float("nan"))
    scores[:, BEFORE : BEFORE + VISUAL] = torch.linspace(1, 0, VISUAL)
    number = torch.full((batch, LENGTH), -1)
    number[:, BEFORE : BEFORE + VISUAL] = torch.arange(VISUAL) // SIDE**2
    positions = torch.cat([torch.arange(BEFORE + KEPT), torch.arange(BEFORE + VISUAL, LENGTH)])
    pruned = GraphReport(
        True,
        "found <b>here</b> & there",
        layer=3,
        num_layers=6,
        cuts=CUTS,
        kept=positions.expand(batch, -1),
        scores=scores,
        frame=number,
        segment=number.div(2, rounding_mode="floor") if segment else None,
        hoisted=True,
        flops=(8_000_000_000, 2_000_000_000),
    )
    for name, value in changes.items():
        setattr(pruned, name, value)
    declined = GraphReport(False, "layer 2 <script>alert(1)</script> is not understood")
    lengths = [LENGTH] * 2 + [BEFORE + BEHIND + VISUAL // 2] * 2 + [BEFORE + BEHIND + KEPT] * 2
    layers = tuple(CachedLayer(length, 1000 * length) for length in lengths)
    inputs = {
        "input_ids": torch.zeros(batch, LENGTH, dtype=torch.long),
        "pixel_values_videos": torch.rand(batch, FRAMES, 3, 24, 24),
    }
    return Explanation((declined, declined, pruned), layers, inputs)


def white(batch=ROWS):
    """Frames on which it shows what is dimmed."""
    return [np.full((FRAMES, 48, 48, 3), 255, np.uint8)] * batch

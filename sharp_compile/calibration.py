"""What position alone explains, measured on a video without content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .short_repr import short_repr


@dataclass(frozen=True, eq=False)
class Calibration:
    """The attention that text pays to visual tokens without content, by their place in the video.

    Attributes:
        layer: the decoder layer that it was measured at.
        profiles: ``[V]`` float32 for each number V of visual tokens that was measured: the attention
            probability of the text after the video, mean over its tokens, the heads and the rows.
    """

    layer: int
    profiles: Mapping[int, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Calibration(layer={short_repr(self.layer)}, profiles={short_repr(self.profiles)})"

    def table(self) -> tuple[Tensor, Tensor]:
        """Return all profiles as one ``[N, V]`` float32, padded with zeros, and their lengths ``[N]`` int64."""
        lengths = sorted(self.profiles)
        profiles = torch.zeros(len(lengths), max(lengths))
        for row, length in enumerate(lengths):
            profiles[row, :length] = self.profiles[length]
        return profiles, torch.tensor(lengths)


def is_measurement(profile: object, visual: int) -> bool:
    """Return whether ``profile`` is what a ``Calibration`` holds for a number of visual tokens."""
    if not isinstance(profile, Tensor) or profile.shape != (visual,) or not profile.is_floating_point():
        return False
    return bool(profile.isfinite().all())

"""The ways to prune that an evaluation compares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

BASELINES = ("uniform", "random")
"""Among the selectors of every table: random selection is hard to beat."""


@dataclass(frozen=True)
class Way:
    """One way to prune: the share ``retention`` of the visual tokens is kept after ``layer``, by ``selector``."""

    layer: int
    retention: float
    selector: str

    def __str__(self) -> str:
        return f"{self.selector} at {self.retention:.0%}, layer {self.layer}"

    def options(self, inner: str) -> dict[str, Any]:
        """Return those of the backend, with the one that compiles the pruned graph."""
        return {"selector": self.selector, "retention": self.retention, "layer": self.layer, "inner": inner}


def ways(layers: Iterable[int], retentions: Iterable[float], selectors: Iterable[str]) -> list[Way]:
    """Return all combinations, with the baselines, each once."""
    combinations = product(layers, retentions, (*selectors, *BASELINES))
    return [Way(*combination) for combination in dict.fromkeys(combinations)]

"""Make torchvision's Python part importable where its compiled part can't be loaded.

transformers' image and video processors need torchvision, of which they use the transforms alone: plain
PyTorch. But PyPI's torchvision wheel is built for CUDA. Beside a CPU-only torch its compiled extension can't
be loaded, which torchvision itself tolerates, and then its import fails all the same with `operator
torchvision::nms does not exist`, because it registers shape functions for two operators that the extension
would have declared. Every ``from transformers import Llava...`` fails with it. With the two operators declared
here the import works, and everything that is written in Python with it; calling the two still fails.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .on_import import Execute, around_import

_MISSING_OPERATORS = ("nms", "qnms")

# An operator lives as long as the Library that declared it.
_declared: list[Any] = []


def install() -> None:
    """Let every later import of torchvision succeed for which no more is missing than the two operators.

    One that failed before does no harm: transformers loads its modules lazily, and tries again.
    """
    around_import("torchvision", _tolerant)


def _tolerant(execute: Execute) -> Execute:
    def execute_with_operators(module: ModuleType) -> None:
        try:
            execute(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            # Submodules that were loaded before the failure would not be loaded again, and so never become attributes
            # of the package, which expects them there.
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            _declare()
            execute(module)

    return execute_with_operators


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _MISSING_OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)

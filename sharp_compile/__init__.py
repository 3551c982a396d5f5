"""A backend for ``torch.compile`` that makes video language models faster by dropping visual tokens.

    model.compile(backend="sharp", options={"retention": 0.10})

``sharp_compile.backend`` is where a graph comes in; see the README for its way from there.
"""

from __future__ import annotations

from . import moved_modules, patches, requirements

requirements.check("torch", "transformers")

from .api import calibrate, compile
from .calibration import Calibration
from .explain import Explanation, explain
from .integrations import accelerate
from .integrations.transformers import generation
from .passes.errors import CannotPrune
from .report import GraphReport, reports, reset
from .selector_registry import register_selector
from .selectors import Context
from .visual_annotation import visual_tokens

__all__ = [
    "Calibration",
    "CannotPrune",
    "Context",
    "Explanation",
    "GraphReport",
    "calibrate",
    "compile",
    "explain",
    "patches",
    "register_selector",
    "reports",
    "reset",
    "visual_tokens",
]

moved_modules.install()
accelerate.install()
generation.install()

"""A backend for ``torch.compile`` that makes video language models faster by dropping visual tokens.

    model.compile(backend="sharp", options={"retention": 0.10})

A graph comes in at ``sharp_compile.backend``; ``docs/how-it-works.md`` has its way from there. What needs
torch is loaded when it is first asked for, so that commands answer at once.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from . import moved_modules, patches, requirements
from .integrations import accelerate, compile_config, torchvision

if TYPE_CHECKING:
    from .api import calibrate, compile
    from .calibration import Calibration
    from .explanation import Explanation, explain
    from .passes.errors import CannotPrune
    from .programs import export, export_decode
    from .report import GraphReport, reports, reset
    from .selector_registry import register_selector
    from .selectors import Context
    from .visual_annotation import visual_tokens

    __version__: str

__all__ = [
    "Calibration",
    "CannotPrune",
    "Context",
    "Explanation",
    "GraphReport",
    "__version__",
    "calibrate",
    "compile",
    "explain",
    "export",
    "export_decode",
    "patches",
    "register_selector",
    "reports",
    "reset",
    "visual_tokens",
]

_DEFINED_IN = {
    "Calibration": "calibration",
    "CannotPrune": "passes.errors",
    "Context": "selectors",
    "Explanation": "explanation",
    "GraphReport": "report",
    "calibrate": "api",
    "compile": "api",
    "explain": "explanation",
    "export": "programs",
    "export_decode": "programs",
    "register_selector": "selector_registry",
    "reports": "report",
    "reset": "report",
    "visual_tokens": "visual_annotation",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("sharp-compile")
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


requirements.check("torch", "transformers")
moved_modules.install()
accelerate.install()
compile_config.install()
torchvision.install()

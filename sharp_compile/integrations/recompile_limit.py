"""Dynamo's limit of recompilations, for functions that are compiled with this backend.

Dynamo compiles a function for at most 8 kinds of calls. Then it runs what it has by its guards alone, and further
kinds eagerly: unpruned, without asking a backend. Sizes, batches, images and videos, settings: a process that serves
sees more than 8 kinds. So with this backend the limit is higher, unless the user has set one, and who reaches it is
told. All other compilations go by Dynamo's own limit.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch._dynamo import convert_frame
from torch._dynamo.exc import ShortenTraceback

from .. import patches
from ..options import Config
from ..passes.errors import CannotPrune

LIMIT = 64
"""How many kinds of calls of one function are compiled."""

DEFAULT = 8
"""Dynamo's own; another one is the user's, and stays."""

_EXCEEDS = "exceeds_recompile_limit"

log = logging.getLogger(__name__)


def isolated() -> dict[str, Any]:
    """The arguments of `torch.compile` that keep what is compiled apart from other compilations of the same code."""
    known = inspect.signature(torch.compile).parameters
    wanted = {"isolate_recompiles": True, "recompile_limit": LIMIT}
    return {name: value for name, value in wanted.items() if name in known}


def watch_limit(active_setting: Callable[[], Config | None]) -> None:
    """Watch the limit from now on, where ``active_setting`` gives options of this backend: None for another one."""
    if hasattr(convert_frame, _EXCEEDS):
        patches.replace(
            convert_frame,
            _EXCEEDS,
            functools.partial(_by_own_limit, active_setting=active_setting),
            versions=patches.TORCH,
            why="from the ninth kind of call on Dynamo would run the full model, in silence",
            acts="compilations for this backend",
        )


def _by_own_limit(original: Callable[..., Any], active_setting: Callable[[], Config | None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def exceeds_recompile_limit(*args: Any, **kwargs: Any) -> tuple[bool, str]:
        setting = active_setting()
        if setting is None:
            found: tuple[bool, str] = original(*args, **kwargs)
            return found
        limit = LIMIT if dynamo.recompile_limit == DEFAULT else dynamo.recompile_limit
        with dynamo.patch(recompile_limit=limit):
            exceeded, name = original(*args, **kwargs)
            if exceeded:
                _tell(sys._getframe(1).f_locals.get("code"), name, getattr(dynamo, name), setting.on_skip)
        return exceeded, name

    return exceeds_recompile_limit


def _tell(code: CodeType | None, name: str, limit: int, on_skip: str) -> None:
    function = "a function" if code is None else f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"
    reason = (
        f"Dynamo has compiled {function} for {limit} kinds of calls, which is its {name}: further kinds run as they "
        "are, unpruned. Call it with fewer kinds of inputs and options, or raise the limit: "
    )
    if name == "recompile_limit" and isolated():
        reason += (
            "sharp_compile.compile(model, ...) counts for one model alone, as does "
            f"model.compile(..., isolate_recompiles=True, recompile_limit={4 * LIMIT})"
        )
    else:
        reason += f"torch._dynamo.config.{name}"
    log.info("%s", reason)
    if on_skip == "raise":
        error = type("CannotPrune", (ShortenTraceback, CannotPrune), {"__module__": CannotPrune.__module__})
        raise error(reason, first_useful_frame=None)
    if on_skip == "warn":
        warnings.warn(f"sharp_compile: {reason}", stacklevel=2)

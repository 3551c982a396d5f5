"""What Dynamo says that needs no action, while it compiles for this backend.

The graph breaks where a model of transformers checks its placeholders, and caches of functions are traced through:
both are expected, and told in some thirty lines of the first call. Messages on other compilations stay.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from torch._dynamo import utils

from .. import patches

_LOGGED = {
    "torch._dynamo.variables.tensor": "Graph break from `Tensor.item()`",
    # `recompilation` says it, with what to do.
    "torch._dynamo.convert_frame": "torch._dynamo hit config.",
}
_WHY = "what needs no action would precede the first result in thirty lines"
_WARNED = "Dynamo detected a call to a `functools.lru_cache`-wrapped"


def filter_messages(is_ours: Callable[[], bool]) -> None:
    """Hide expected messages from now on, where ``is_ours`` says that the backend at work is this one."""
    for name, begins in _LOGGED.items():
        _filter_log(name, begins, is_ours)
    if hasattr(utils, "warn_once"):
        patches.replace(
            utils,
            "warn_once",
            functools.partial(_without_expected, is_ours=is_ours),
            versions=patches.TORCH,
            why=_WHY,
            acts="compilations for this backend",
        )


def _filter_log(name: str, begins: str, is_ours: Callable[[], bool]) -> None:
    def is_news(record: logging.LogRecord) -> bool:
        return not (str(record.msg).startswith(begins) and is_ours())

    logger = logging.getLogger(name)
    patches.change(
        f"logger {name}",
        f"a filter of messages that begin with {begins!r}",
        lambda: logger.addFilter(is_news),
        lambda: logger.removeFilter(is_news),
        versions=patches.TORCH,
        why=_WHY,
        acts="compilations for this backend",
    )


def _without_expected(original: Callable[..., None], is_ours: Callable[[], bool]) -> Callable[..., None]:
    @functools.wraps(original)
    def warn_once(msg: str, stacklevel: int = 1) -> None:
        if not (msg.startswith(_WARNED) and is_ours()):
            original(msg, stacklevel + 1)

    return warn_once

"""What Dynamo says that needs no action, while it compiles for this backend.

The graph breaks where a model of transformers checks its placeholders, and caches of functions are traced through:
both are expected, and told in some thirty lines of the first call. Messages on other compilations stay.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from torch._dynamo import utils

_LOGGED = {
    "torch._dynamo.variables.tensor": "Graph break from `Tensor.item()`",
    # `recompilation` says it, with what to do.
    "torch._dynamo.convert_frame": "torch._dynamo hit config.",
}
_WARNED = "Dynamo detected a call to a `functools.lru_cache`-wrapped"


def filter_messages(is_ours: Callable[[], bool]) -> None:
    """Hides expected messages from now on, where `is_ours` says that the backend at work is this one."""
    for name, begins in _LOGGED.items():

        def is_news(record: logging.LogRecord, begins: str = begins) -> bool:
            return not (str(record.msg).startswith(begins) and is_ours())

        logging.getLogger(name).addFilter(is_news)

    original = getattr(utils, "warn_once", None)
    if original is None:
        return

    @functools.wraps(original)
    def warn_once(msg: str, stacklevel: int = 1) -> None:
        if not (msg.startswith(_WARNED) and is_ours()):
            original(msg, stacklevel + 1)

    utils.warn_once = warn_once

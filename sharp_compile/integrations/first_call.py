"""Says, once in a process, that a call takes long because it is compiled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from torch._dynamo.callback import callback_handler

AFTER = 5.0
"""Seconds of compiling before anything is said."""

log = logging.getLogger(__name__)

_calls = threading.local()


class _FirstCall:
    """Watches Dynamo's compilations until one has been told of; ``doing`` is what is going on."""

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None
        self.doing, self.told = "", False

    def begin(self, _: Any) -> None:
        """Take the time from now on, if what is compiled is for this backend."""
        if getattr(_calls, "watched", False) and not self.told:
            self.doing = "PyTorch traces the model"
            self.timer = threading.Timer(AFTER, self.tell)
            self.timer.daemon = True
            self.timer.start()

    def end(self, _: Any) -> None:
        """Say nothing of what is done by now."""
        if self.timer is not None:
            self.timer.cancel()

    def tell(self) -> None:
        """Say what takes long."""
        if not self.told:
            self.told = True
            log.warning(
                "sharp_compile: this call is being compiled, once for each kind of call (now: %s); later ones are fast",
                self.doing,
            )


_first_call = _FirstCall()


def watch() -> Callable[[], None]:
    """Watch the compilations of a call that begins; return what ends that."""
    if _first_call.begin not in callback_handler.start_callbacks:  # at first, and after a reset of Dynamo's
        callback_handler.register_start_callback(_first_call.begin)
        callback_handler.register_end_callback(_first_call.end)
    before = getattr(_calls, "watched", False)
    _calls.watched = True

    def end() -> None:
        _calls.watched = before

    return end


def now(what: str) -> None:
    """Note what is going on from now on."""
    _first_call.doing = what

"""Says that a way of switching the backend on prunes nothing, and which way does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from ..options import Config
from ..passes.errors import CannotPrune

log = logging.getLogger(__name__)


def decline(reason: str, options: Mapping[str, Any]) -> None:
    """Do what the user asked for about something that runs unpruned.

    Args:
        reason: what runs unpruned, and what to change.
        options: those of the backend. Bad ones are left to it: it names them when it compiles.

    Raises:
        CannotPrune: with ``on_skip="raise"``.
    """
    try:
        on_skip = Config.parse(options).on_skip
    except ValueError:
        on_skip = "warn"
    log.info("not pruned: %s", reason)
    if on_skip == "raise":
        raise CannotPrune(reason)
    if on_skip != "silent":
        warnings.warn(f"sharp_compile prunes nothing here: {reason}", stacklevel=2)

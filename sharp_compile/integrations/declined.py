"""Says that a way of switching the backend on prunes nothing, and which way does."""

from __future__ import annotations

import logging
import warnings

from ..config import Config
from ..passes.errors import CannotPrune

log = logging.getLogger("sharp_compile")


def decline(reason: str, config: Config) -> None:
    """Do what the user asked for about something that runs unpruned.

    Args:
        reason: what runs unpruned, and what to change.
        config: the options.

    Raises:
        CannotPrune: with ``on_skip="raise"``.
    """
    log.info("not pruned: %s", reason)
    if config.on_skip == "raise":
        raise CannotPrune(reason)
    if config.on_skip != "silent":
        warnings.warn(f"sharp_compile prunes nothing here: {reason}", stacklevel=2)

"""Keeps libraries quiet while one of our commands shows its own progress."""

from __future__ import annotations

import logging

import transformers


def suppress_logs() -> None:
    """Keep libraries from telling what is no news to a command's user and would break its progress bar.

    Dynamo warns of the graph break in transformers' check of the placeholders, which is expected; transformers
    shows default generation settings, and bars while it loads weights. That something is compiled the command says.
    """
    for name in ("torch._dynamo", "sharp_compile.integrations.first_call"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

"""How a subcommand ends that can't go on."""

from __future__ import annotations

import importlib.util
import os
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

import typer

show_traceback: ContextVar[bool] = ContextVar("show_traceback", default=False)
"""Whether ``--debug`` was given."""


def fail(reason: object) -> NoReturn:
    """End the command with an error message and exit status 2; with ``--debug`` an exception is raised as it is."""
    if isinstance(reason, Exception) and show_traceback.get():
        raise reason
    # Dynamo appends a paragraph of advice for its own developers.
    text, _, _ = str(reason).strip().partition("\n\n")
    typer.secho(f"error: {text}", err=True, fg="red")
    raise typer.Exit(2)


def check_installed(*modules: str, need: str, extra: str) -> None:
    """Refuse to start without modules that an extra of the package brings; ``need`` begins the message."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        fail(f"{need} {', '.join(missing)}: pip install 'sharp-compile[{extra}]'")


def check_folders(*paths: Path | None) -> None:
    """Refuse to start what could not be written."""
    for path in paths:
        if path is None:
            continue
        folder = path.absolute().parent
        try:
            if not folder.is_dir():
                fail(f"{path}: there is no folder {folder}")
            if path.is_dir():
                fail(f"{path}: this is a folder, name a file in it")
            # A device or a pipe is written into; a file is replaced, which its folder has to allow.
            target = path if path.exists() and not path.is_file() else folder
            if not os.access(target, os.W_OK):
                fail(f"{path}: there is no permission to write {target}")
        except OSError as error:
            fail(f"{path}: {error.strerror}")

"""How a subcommand ends that can't go on."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer


def fail(message: object) -> NoReturn:
    """End the command with an error message and exit status 1."""
    # Dynamo appends a paragraph of advice for its own developers.
    text, _, _ = str(message).strip().partition("\n\n")
    typer.secho(f"error: {text}", err=True, fg="red")
    raise typer.Exit(1)


def check_folders(*paths: Path | None) -> None:
    """Refuse to start what could not be written."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            fail(f"{path}: there is no folder {path.absolute().parent}")

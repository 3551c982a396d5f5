"""The ``sharp-compile`` command, a module for each subcommand.

What a subcommand needs is imported when it runs, so that ``--help`` is fast.
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from .bench import bench
from .demo import demo
from .evaluate import evaluate
from .explain import explain

app = typer.Typer(
    help="Prune visual tokens inside the decoders of video language models, with torch.compile.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(explain)


def main() -> None:
    """Run the command line; the entry point of the package."""
    app()


def _show_version(wanted: bool) -> None:
    """Print the version and end, if ``--version`` was given."""
    if wanted:
        typer.echo(metadata.version("sharp-compile"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Take the options that come before a subcommand."""

"""The ``sharp-compile`` command, a module for each subcommand.

What a subcommand needs is imported when it runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from sharp_compile.short_repr import brief

from .bench import bench
from .check import check
from .demo import demo
from .errors import show_traceback
from .evaluate import evaluate
from .explain import explain

app = typer.Typer(
    help="Prune visual tokens inside the decoders of video language models, with torch.compile.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(explain)
app.command()(check)


def main() -> None:
    """Run the command line; the entry point of the package."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # wherever it stands
        arguments.remove("--debug")
        arguments.insert(0, "--debug")
    try:
        app(arguments)
    except Exception as error:
        if show_traceback.get():
            raise
        typer.secho(f"error: {type(error).__name__}: {brief(error)} (--debug shows where)", err=True, fg="red")
        sys.exit(2)


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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take the options that come before a subcommand."""
    show_traceback.set(debug)

"""Options that several subcommands take, and what is refused of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .errors import fail

Retention = Annotated[float, typer.Option(help="Share of the visual tokens kept.")]
Layer = Annotated[int, typer.Option(help="The decoder layer after which the others are dropped.")]
Selector = Annotated[
    str,
    typer.Option(
        help="What decides: sharp, fastv, pyramiddrop, feather, sparsevlm, visiondrop, framefusion, diversity, "
        "uniform or random."
    ),
]
Retentions = Annotated[list[float], typer.Option(help="Shares of the visual tokens kept, may be repeated.")]
Layers = Annotated[list[int], typer.Option(help="Layers after which the others are dropped, may be repeated.")]
Json = Annotated[Path | None, typer.Option(help="Write the numbers to this file as well.")]


def refuse_given(context: typer.Context, names: Sequence[str], why: str) -> None:
    """End the command if one of the options ``names`` stands on the command line, where it would mean nothing."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            fail(f"--{name.replace('_', '-')} is {why}")

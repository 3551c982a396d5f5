"""Options of the backend that several subcommands take."""

from __future__ import annotations

from typing import Annotated

import typer

Retention = Annotated[float, typer.Option(help="Share of the visual tokens kept.")]
Layer = Annotated[int, typer.Option(help="The decoder layer after which the others are dropped.")]
Selector = Annotated[
    str,
    typer.Option(
        help="What decides: sharp, fastv, pyramiddrop, feather, sparsevlm, visiondrop, framefusion, diversity, "
        "uniform or random."
    ),
]

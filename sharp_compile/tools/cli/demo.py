"""``sharp-compile demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import check_folders, check_installed, fail
from .options import Json, Layer, Retention, Selector


def demo(
    video: Annotated[
        Path | None,
        typer.Option(help="A video file of your own.  [default: a clip that comes with the package]"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The folder of a checkpoint.  [default: two small models with random weights]"),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="With --model: what to ask.  [default: what moves, and where it goes]")
    ] = None,
    retention: Retention = 0.10,
    layer: Layer = 1,
    selector: Selector = "sharp",
    frames: Annotated[int, typer.Option(min=1, help="Frames taken from the video, at even distances.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 5,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("sharp-demo.png"),
    json: Json = None,
) -> None:
    """Run a video through two models, pruned and unpruned: a table of times, a picture of what is kept.

    Works offline. First a small model that was trained to answer is asked about rendered videos, in full and pruned.
    Then two models, a LLaVA-OneVision and a Qwen2.5-VL, are built on the spot with random weights and timed: speeds
    and lengths are real. Takes a few minutes on two cores, most of it compilation. With --model, yours is asked and
    timed instead.
    """
    check_installed("av", "PIL", "torchvision", need="the demo needs", extra="video")
    check_folders(output, json)

    from sharp_compile import CannotPrune
    from sharp_compile.options import Config
    from sharp_compile.tools.demo import DemoError

    try:
        Config.parse({"retention": retention, "layer": layer, "selector": selector})
    except ValueError as error:
        fail(error)

    from sharp_compile.tools import results_io
    from sharp_compile.tools.demo.run import CLIP, Request, run

    try:
        rows = run(Request(video or CLIP, model, question, retention, layer, selector, frames, repeats, output))
        if json is not None:
            results_io.write_json(json, rows)
    except (DemoError, CannotPrune, ValueError, OSError) as error:
        fail(error)

"""``sharp-compile explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import check_folders, check_installed, fail
from .options import Json, Layer, Retention, Selector

Model = Annotated[
    Path | None,
    typer.Option(help="The folder of a checkpoint.  [default: the small trained model of `sharp-compile eval`]"),
]
Video = Annotated[
    Path | None, typer.Option(help="With --model: a video file.  [default: a clip that comes with the package]")
]
Question = Annotated[
    str | None, typer.Option(help="With --model: what to ask.  [default: what moves, and where it goes]")
]
Frames = Annotated[int, typer.Option(min=1, help="With --model: frames taken from the video, at even distances.")]
World = Annotated[str, typer.Option(help="Without --model: which kind of rendered video: sparse, clutter or crowded.")]
Output = Annotated[Path, typer.Option(help="The page to write.")]


def explain(
    model: Model = None,
    video: Video = None,
    question: Question = None,
    frames: Frames = 8,
    world: World = "crowded",
    retention: Retention = 0.10,
    layer: Layer = 1,
    selector: Selector = "sharp",
    output: Output = Path("sharp-explain.html"),
    json: Json = None,
) -> None:
    """Run one video through a model and write an HTML page: what each token scored, what was dropped, and why.

    Works offline, and so does the page. Without a checkpoint, a small model that was trained to answer is asked
    about a rendered video. Nothing is timed, so nothing is compiled by Inductor: the page is there in seconds.
    """
    needed = ("PIL",) if model is None else ("av", "PIL", "torchvision")
    check_installed(*needed, need="explain needs", extra="video")
    if video is not None and model is None:
        fail(f"--video {video} needs --model: the small trained model knows rendered videos only")
    check_folders(output, json)

    from sharp_compile import CannotPrune
    from sharp_compile.options import Config
    from sharp_compile.tools import results_io
    from sharp_compile.tools.demo import DemoError
    from sharp_compile.tools.evaluation.scenes import WORLDS

    options = {"retention": retention, "layer": layer, "selector": selector}
    try:
        Config.parse(options)
    except ValueError as error:
        fail(error)
    if world not in WORLDS:
        fail(f"--world {world}: there are {', '.join(WORLDS)}")

    from sharp_compile.tools.html_report import show
    from sharp_compile.tools.suppressed_logs import suppress_logs

    suppress_logs()
    try:
        asked = show.rendered(world) if model is None else show.filmed(model, video, question, frames)
        rows = show.show(asked, options, output)
        if json is not None:
            results_io.write_json(json, rows)
    except (DemoError, CannotPrune, ValueError, OSError) as error:
        fail(error)

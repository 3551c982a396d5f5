"""The `sharp-compile` command. What a subcommand needs is imported when it runs, so that `--help` is fast."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    help="Prune visual tokens inside the decoders of video language models, with torch.compile.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the entry point of the package."""
    app()


def _fail(message: object) -> NoReturn:
    """End the command with an error message and exit status 1."""
    # Dynamo appends a paragraph of advice for its own developers.
    text, _, _ = str(message).strip().partition("\n\n")
    typer.secho(f"error: {text}", err=True, fg="red")
    raise typer.Exit(1)


def _show_version(wanted: bool) -> None:
    """Print the version and end, if `--version` was given."""
    if wanted:
        typer.echo(metadata.version("sharp-compile"))
        raise typer.Exit


def _check_folders(*paths: Path | None) -> None:
    """Refuse to start what could not be written."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            _fail(f"{path}: there is no folder {path.absolute().parent}")


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Take the options that come before a subcommand."""


@app.command()
def demo(
    video: Annotated[
        Path | None,
        typer.Option(help="A video file of your own.  [default: a clip that comes with the package]"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The folder of a checkpoint.  [default: two small models with random weights]"),
    ] = None,
    retention: Annotated[float, typer.Option(help="Share of the visual tokens kept.")] = 0.10,
    layer: Annotated[int, typer.Option(help="The decoder layer after which the others are dropped.")] = 1,
    selector: Annotated[
        str,
        typer.Option(
            help="What decides: sharp, fastv, pyramiddrop, feather, sparsevlm, visiondrop, framefusion, diversity, "
            "uniform or random."
        ),
    ] = "sharp",
    frames: Annotated[int, typer.Option(min=1, help="Frames taken from the video, at even distances.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 5,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("sharp-demo.png"),
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file as well.")] = None,
) -> None:
    """Run a video through two models, pruned and unpruned: a table of times, a picture of what is kept.

    Works offline. The two models, a LLaVA-OneVision and a Qwen2.5-VL, are built on the spot with random
    weights: speeds and lengths are real, answers are not. Takes a few minutes on two cores, most of it
    compilation.
    """
    missing = [name for name in ("av", "PIL", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        _fail(f"the demo needs {', '.join(missing)}: pip install 'sharp-compile[video]'")
    _check_folders(output, json)

    from sharp_compile import CannotPrune
    from sharp_compile.config import Config
    from sharp_compile.demo import DemoError

    try:
        Config.parse({"retention": retention, "layer": layer, "selector": selector})
    except ValueError as error:
        _fail(error)

    from sharp_compile import record
    from sharp_compile.demo.run import CLIP, Request, run

    try:
        rows = run(Request(video or CLIP, model, retention, layer, selector, frames, repeats, output))
        if json is not None:
            record.write_json(json, rows)
    except (DemoError, CannotPrune, OSError) as error:
        _fail(error)


@app.command("eval")
def evaluate(
    selector: Annotated[
        list[str], typer.Option(help="Rules to compare, may be repeated; uniform and random are always among them.")
    ] = ["sharp", "fastv", "diversity"],  # noqa: B006 - typer copies it
    retention: Annotated[list[float], typer.Option(help="Shares of the visual tokens kept, may be repeated.")] = [  # noqa: B006
        0.10,
        0.05,
    ],
    layer: Annotated[
        list[int], typer.Option(help="Decoder layers after which the others are dropped, may be repeated.")
    ] = [1, 0],  # noqa: B006
    world: Annotated[
        list[str] | None, typer.Option(help="sparse, clutter or crowded, may be repeated.  [default: all]")
    ] = None,
    questions: Annotated[int, typer.Option(min=2, help="Questions in each world, each on a video of its own.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of the held-out videos and questions.")] = 0,
    trained: Annotated[int, typer.Option(help="Which of the trained models: its training seed.")] = 1,
    inner: Annotated[str, typer.Option(help="The Dynamo backend that compiles the pruned graph.")] = "eager",
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against retention into this PNG file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers to this file as well.")] = None,
) -> None:
    """Let a pruned model answer questions about videos: accuracy for every rule, retention and layer.

    Works offline, with a small video language model that comes with the package and rendered videos that its training
    has not seen.
    """
    _check_folders(plot, json)
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        _fail("--plot needs matplotlib: pip install 'sharp-compile[bench]'")

    from sharp_compile.config import Config
    from sharp_compile.evaluation import MODELS
    from sharp_compile.evaluation.scenes import WORLDS

    worlds = world or list(WORLDS)
    for name in worlds:
        if name not in WORLDS:
            _fail(f"--world {name}: there are {', '.join(WORLDS)}")
    there = sorted(int(folder.name.removeprefix("seed-")) for folder in MODELS.glob("seed-*"))
    if trained not in there:
        _fail(f"--trained {trained}: there are models of the seeds {', '.join(map(str, there))}")
    try:
        for rule, share, at in product(selector, retention, layer):
            Config.parse({"retention": share, "layer": at, "selector": rule, "inner": inner})
    except ValueError as error:
        _fail(error)

    from sharp_compile import record
    from sharp_compile.evaluation.grade import NotPruned
    from sharp_compile.evaluation.run import Request, run

    try:
        rows = run(Request(trained, worlds, selector, retention, layer, questions, seed, inner))
        if json is not None:
            record.write_json(json, rows)
        if plot is not None:
            from sharp_compile.evaluation.plot import accuracy_plot

            record.write(plot, accuracy_plot(rows))
    except (NotPruned, OSError) as error:
        _fail(error)

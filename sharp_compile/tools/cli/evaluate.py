"""``sharp-compile eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import check_folders, check_installed, fail
from .options import Json, Layers, Retentions, refuse_given

if TYPE_CHECKING:
    from sharp_compile.tools.evaluation.benchmarks import Request as BenchmarkRequest
    from sharp_compile.tools.evaluation.run import Request as TrainedRequest


# Options that mean something for one of the two only.
_OF_TRAINED = ("world", "questions", "seed", "trained", "plot")
_OF_CHECKPOINTS = ("task", "limit", "include", "frames", "trust_remote_code")

Selectors = Annotated[
    list[str], typer.Option(help="Rules to compare, may be repeated; uniform and random are always among them.")
]
Worlds = Annotated[list[str] | None, typer.Option(help="sparse, clutter or crowded, may be repeated.  [default: all]")]
Questions = Annotated[int, typer.Option(min=2, help="Questions in each world, each on a video of its own.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the held-out videos and questions.")]
Trained = Annotated[int, typer.Option(help="Which of the trained models: its training seed.")]
Plot = Annotated[Path | None, typer.Option(help="Draw accuracy against retention into this PNG file.")]
Model = Annotated[
    str | None, typer.Option(help="A checkpoint in place of the trained models: a folder, or a name on the hub.")
]
Tasks = Annotated[list[str] | None, typer.Option(help="A task of lmms-eval for the checkpoint, may be repeated.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many questions of each task.")]
Include = Annotated[Path | None, typer.Option(help="A folder with tasks of your own.")]
Frames = Annotated[int, typer.Option(min=1, help="Frames taken from each video of a task.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the checkpoint run.")
]
Inner = Annotated[
    str | None,
    typer.Option(
        help="The Dynamo backend that compiles the pruned graph.  [default: eager; inductor for a checkpoint]"
    ),
]


def evaluate(
    context: typer.Context,
    selector: Selectors = ["sharp", "fastv", "diversity"],  # noqa: B006 - typer copies it, and others below
    retention: Retentions = [0.10, 0.05],  # noqa: B006
    layer: Layers = [1, 0],  # noqa: B006
    world: Worlds = None,
    questions: Questions = 300,
    seed: Seed = 0,
    trained: Trained = 1,
    plot: Plot = None,
    model: Model = None,
    task: Tasks = None,
    limit: Limit = None,
    include: Include = None,
    frames: Frames = 32,
    trust_remote_code: TrustRemoteCode = False,
    inner: Inner = None,
    json: Json = None,
) -> None:
    """Let a pruned model answer questions about videos: accuracy for every rule, retention and layer.

    Without ``--model`` it works offline, with a small video language model that comes with the package and rendered
    videos that its training has not seen. With ``--model`` and ``--task`` a checkpoint answers benchmarks through
    lmms-eval; ``--limit``, ``--include``, ``--frames`` and ``--trust-remote-code`` belong to these.
    """
    if model is None:
        refuse_given(context, _OF_CHECKPOINTS, "only for a checkpoint, which --model names")
    else:
        refuse_given(context, _OF_TRAINED, "only for the trained models that come with the package, without --model")
    check_folders(plot, json)
    if plot is not None:
        check_installed("matplotlib", need="--plot needs", extra="bench")
    if model is not None and not task:
        fail(f"--model {model}: say with --task what it is to answer")

    from sharp_compile.options import Config
    from sharp_compile.tools.evaluation import benchmarks, run
    from sharp_compile.tools.evaluation.scenes import WORLDS
    from sharp_compile.tools.evaluation.variants import ways

    inner = inner or ("eager" if model is None else "inductor")
    asked = ways(layer, retention, selector)
    try:
        for way in asked:
            Config.parse(way.options(inner))
    except ValueError as error:
        fail(error)
    try:
        if model is None:
            _trained(run.Request(trained, world or list(WORLDS), asked, questions, seed, inner), json, plot)
        else:
            _benchmarks(
                benchmarks.Request(model, task or [], asked, inner, limit, include, frames, trust_remote_code), json
            )
    except OSError as error:
        fail(error)


def _trained(request: TrainedRequest, json: Path | None, plot: Path | None) -> None:
    from sharp_compile.tools import results_io
    from sharp_compile.tools.evaluation import MODELS
    from sharp_compile.tools.evaluation.run import run
    from sharp_compile.tools.evaluation.scenes import WORLDS
    from sharp_compile.tools.evaluation.score import NotPruned

    for name in request.worlds:
        if name not in WORLDS:
            fail(f"--world {name}: there are {', '.join(WORLDS)}")
    there = sorted(int(folder.name.removeprefix("seed-")) for folder in MODELS.glob("seed-*"))
    if request.seed not in there:
        fail(f"--trained {request.seed}: there are models of the seeds {', '.join(map(str, there))}")
    try:
        rows = run(request)
    except NotPruned as error:
        fail(error)
    if json is not None:
        results_io.write_json(json, rows)
    if plot is not None:
        from sharp_compile.tools.evaluation.plot import accuracy_plot

        results_io.write(plot, accuracy_plot(rows))


def _benchmarks(request: BenchmarkRequest, json: Path | None) -> None:
    from rich.console import Console

    from sharp_compile.tools import results_io
    from sharp_compile.tools.evaluation.benchmarks import run, summary
    from sharp_compile.tools.evaluation.lmms import Row
    from sharp_compile.tools.evaluation.score import LmmsError, NotPruned

    rows: list[Row] = []
    try:
        # What took hours is written before the next way to prune begins, which may fail.
        for of_way in run(request):
            rows += of_way
            if json is not None:
                results_io.write_json(json, rows)
    except (LmmsError, NotPruned) as error:
        fail(error)
    finally:
        if rows:
            Console(markup=False).print(results_io.machine(), summary(rows))

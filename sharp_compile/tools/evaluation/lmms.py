"""The benchmarks of lmms-eval: how well a checkpoint answers them, pruned or not."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch

import sharp_compile
from sharp_compile.options import Config
from sharp_compile.sharp_options import nearest
from sharp_compile.short_repr import brief
from sharp_compile.tools import checkpoint

from .score import LmmsError


@dataclass(frozen=True)
class Row:
    """A metric of one task, or the mean over the tasks of a group.

    Attributes:
        selector: the selector; ``"none"`` for the full model.
        retention: share of the visual tokens kept, after the last cut.
        layer: the layer after which they are; None for the full model.
        task: lmms-eval's name of the task or group.
        metric: lmms-eval's name of the metric.
        accuracy: the metric in percent, see ``in_percent``.
        stderr: standard error of the accuracy.
        n: number of questions.
        reported: the metric as lmms-eval gives it; the mean of those of a group.
        share_of_full: accuracy over that of the full model, in percent; None where that has nothing right.
    """

    selector: str
    retention: float
    layer: int | None
    task: str
    metric: str
    accuracy: float
    stderr: float
    n: int
    reported: float
    share_of_full: float | None = 100.0


def evaluate(
    model: str,
    tasks: Sequence[str],
    options: Mapping[str, object] | None = None,
    limit: int | None = None,
    include: Path | None = None,
    frames: int = 32,
    trust_remote_code: bool = False,
) -> list[Row]:
    """Let a checkpoint answer tasks of lmms-eval, on the accelerator if there is one.

    What was compiled before is forgotten.

    Args:
        model: a folder, or the name of a checkpoint on the Hugging Face hub.
        tasks: names of tasks or groups.
        options: those of the backend; None for the full model.
        limit: at most so many questions of each task, from the first.
        include: a folder with tasks of one's own.
        frames: taken from each video, at even distances.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Returns:
        A row for each metric of each task, and one for each group of tasks with the same metric.

    Raises:
        ValueError: for a bad option, before anything is loaded.
        LmmsError: without lmms-eval, for an unknown task, for one that this can't serve, or without a model.
        NotPruned: at the first question with something to see that runs unpruned, with the backend's reasons.
    """
    config = None if options is None else Config.parse(options)
    _check_installed()
    from .lmms_model import ChatModel

    manager = _find(tasks, include)
    torch.compiler.reset()
    sharp_compile.reset()
    loaded, processor = _load(model, trust_remote_code)
    # Some tasks have other prompts for some models, by names that are those of transformers for the most part.
    manager.model_name = loaded.config.model_type
    must_prune = config is not None and config.cuts[-1].numerator < config.cuts[-1].denominator
    if options is not None:
        # A question that is answered unpruned ends the evaluation.
        settings: dict[str, Any] = {"on_skip": "silent", **options}
        sharp_compile.compile(loaded, **settings)
    answering = ChatModel(loaded, processor, frames, must_prune)
    rows = _rows(_answer(answering, tasks, limit, manager))
    if not rows:
        raise LmmsError(f"{', '.join(tasks)}: lmms-eval reports no number for it, others grade its answers")
    return rows if config is None else _pruned_rows(rows, config, answering.layer)


def _pruned_rows(rows: Sequence[Row], config: Config, layer: int | None) -> list[Row]:
    """Return the rows as those of a pruned model; ``layer`` is where its last graph was cut, None if unknown."""
    cut = config.cuts[-1]
    return [
        replace(
            row,
            selector=str(getattr(config.selector, "__name__", config.selector)),
            retention=cut.numerator / cut.denominator,
            layer=cut.layer if layer is None else layer,
        )
        for row in rows
    ]


def _check_installed() -> None:
    try:
        installed = importlib.util.find_spec("lmms_eval") is not None
    except ValueError:
        installed = False
    if not installed:
        raise LmmsError("evaluating on benchmarks needs lmms-eval: pip install 'sharp-compile[eval]'")


def _answer(model: Any, tasks: Sequence[str], limit: int | None, manager: Any) -> Mapping[str, Any]:
    """Return what lmms-eval reports of a model's answers; its ways to fail become errors of ours."""
    from lmms_eval import evaluator
    from tenacity import RetryError

    try:
        results: Mapping[str, Any] = evaluator.simple_evaluate(
            model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0
        )
    except RetryError as error:
        raise LmmsError(f"{', '.join(tasks)}: {brief(error.last_attempt.exception())}") from error
    except AssertionError as error:
        if "generation only" not in str(error):
            raise
        raise LmmsError(f"{', '.join(tasks)}: only tasks whose answers are generated are served") from error
    except SystemExit as error:  # some tasks end the process where they find no video
        raise LmmsError(str(error)) from error
    return results


def _find(tasks: Sequence[str], include: Path | None) -> Any:
    """lmms-eval's list of tasks, which has all of these."""
    from lmms_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise LmmsError(f"{include}: there is no such folder")
    manager = TaskManager(include_path=None if include is None else str(include))
    for task in tasks:
        if task not in manager.all_tasks:
            raise LmmsError(f"{task}: lmms-eval has no such task{nearest(task, manager.all_tasks)}")
    return manager


def _load(model: str, trust_remote_code: bool) -> tuple[Any, Any]:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        loaded, processor = checkpoint.load(model, torch.float32 if device.type == "cpu" else "auto", trust_remote_code)
    except checkpoint.CheckpointError as error:
        where = "no checkpoint of a video model"
        if not Path(model).is_dir():
            where = "there is no such folder, and no such checkpoint of a video model could be had from the hub"
        raise LmmsError(f"{model}: {where} ({error})") from error
    return loaded.to(device).eval(), processor


def _rows(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a full model."""
    rows: list[Row] = []
    for task, metrics in results["results"].items():
        samples = results.get("samples", {}).get(task, [])
        score_key = results["configs"].get(task, {}).get("score_key", "score")
        for key, value in metrics.items():
            metric, _, way = key.partition(",")
            # The others are errors and names.
            if metric not in results["higher_is_better"].get(task, {}) or not isinstance(value, Real):
                continue
            scores = _scores([sample.get(metric) for sample in samples], score_key)
            accuracy = in_percent(float(value), scores)
            n = sum(results["n-samples"][each]["effective"] for each in results["group_subtasks"].get(task) or [task])
            errors = [metrics.get(f"{metric}_stderr_{kind},{way}") for kind in ("clustered", "clt")]
            told = [float(error) for error in errors if isinstance(error, Real) and scores]
            scale = 100 if all(0 <= score <= 1 for score in scores) else 1
            stderr = scale * told[0] if told else math.sqrt(max(accuracy * (100 - accuracy), 0) / max(n, 1))
            name = metric if way == "none" else f"{metric} ({way})"
            rows.append(Row("none", 1.0, None, task, name, accuracy, stderr, n, float(value)))
    return rows + _groups(results["group_subtasks"], rows)


def _groups(members: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> list[Row]:
    """Return the means of groups for which lmms-eval makes none, MVBench among them."""
    means = []
    for group, tasks in members.items():
        own = [row for row in rows if row.task in tasks]
        metrics = {row.metric for row in own}
        if any(row.task == group for row in rows) or len(own) != len(tasks) or len(metrics) != 1:
            continue
        means.append(
            replace(
                own[0],
                task=group,
                accuracy=statistics.fmean(row.accuracy for row in own),
                stderr=math.hypot(*(row.stderr for row in own)) / len(own),
                n=sum(row.n for row in own),
                reported=statistics.fmean(row.reported for row in own),
            )
        )
    return means


def _scores(values: Sequence[Any], key: str) -> list[float]:
    """Return the scores of the single questions, as far as a task tells them."""
    told = [value.get(key) if isinstance(value, Mapping) else value for value in values]
    return [float(score) for score in told if isinstance(score, Real)]


def in_percent(value: float, scores: Sequence[float]) -> float:
    """Return a metric in percent.

    Some tasks report a share and some report percent, and none says which: it is what comes nearer to the mean of the
    questions' scores, or, where a task tells no scores between 0 and 1, percent if it is above 1.
    """
    if not scores:
        return float(value if value > 1 else 100 * value)
    if min(scores) < 0 or max(scores) > 1:
        return float(value)
    mean = statistics.fmean(scores)
    return float(100 * value if abs(value - mean) <= abs(value - 100 * mean) else value)

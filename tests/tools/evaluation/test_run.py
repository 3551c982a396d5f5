"""`sharp-compile eval`: options, tables, the JSON file and the plot."""

import io
import json
import re
from itertools import product

import pytest
from PIL import Image
from typer.testing import CliRunner

from sharp_compile.tools import cli
from sharp_compile.tools.evaluation.plot import accuracy_plot
from sharp_compile.tools.evaluation.rows import Row

CONTRACT = {"selector", "retention", "layer", "accuracy", "stderr", "n", "share_of_full"}


def run(*arguments):
    return CliRunner().invoke(cli.app, ["eval", *map(str, arguments)], env={"COLUMNS": "160"})


def test_a_small_evaluation(tmp_path):
    numbers, picture = tmp_path / "numbers.json", tmp_path / "plot.png"
    result = run(
        *("--selector", "sharp", "--retention", "0.1", "--world", "sparse"),
        *("--layer", 1, "--layer", 0, "--questions", 4, "--json", numbers, "--plot", picture),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(numbers.read_text())["rows"]
    ways = [(row["layer"], row["selector"]) for row in rows]
    assert ways == [(None, "none"), *product([1, 0], ["sharp", "uniform", "random"])]
    assert all(set(row) >= CONTRACT and row["n"] == 4 for row in rows)
    assert rows[0]["share_of_full"] == 100
    assert all(f"By kind of question, 10% kept after layer {layer}" in result.output for layer in (0, 1))
    assert "held-out questions" in result.output
    leads = re.findall(r"^ *(\w+) +10% +([01]) +([+-]\d+\.\d) ± (\d+\.\d)", result.output, re.MULTILINE)
    assert [(layer, name) for name, layer, *_ in leads] == [*product("10", ["uniform", "random"])]
    told = {(row["selector"], row["layer"]): (row["behind_sharp"], row["behind_sharp_stderr"]) for row in rows}
    for name, layer, points, error in leads:
        assert (float(points), float(error)) == tuple(round(value, 1) for value in told[name, int(layer)])
    assert Image.open(picture).size[0] > 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--selector", "shrap"], "'sharp'"),
        (["--retention", "0"], "retention"),
        (["--world", "quiet"], "--world quiet: there are sparse, clutter, crowded"),
        (["--inner", "nothing"], "inner"),
        (["--trained", "77"], "--trained 77: there are models of the seeds 1"),
        (["--model", "somewhere"], "--model somewhere: say with --task what it is to answer"),
        (["--task", "mvbench"], "--task is only for a checkpoint, which --model names"),
        (["--trust-remote-code"], "--trust-remote-code is only for a checkpoint"),
        (["--model", "somewhere", "--task", "mvbench", "--plot", "plot.png"], "--plot is only for the trained models"),
        (["--model", "somewhere", "--task", "mvbench", "--questions", "300"], "--questions is only for the trained"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--plot", "/nowhere/at/all.png"], "there is no folder /nowhere/at"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_plot_has_a_panel_for_each_world_and_layer():
    """Of one retention or several, with a full model that nothing was kept of."""
    ways = [(None, "none", 1.0), (1, "sharp", 0.1), (1, "sharp", 0.05), (0, "sharp", 0.1), (0, "random", 0.1)]
    rows = [
        Row("seed 1", world, selector, retention, layer, 50.0, 3.0, 10, 80.0)
        for world in ("sparse", "crowded")
        for layer, selector, retention in ways
    ]
    wide, high = Image.open(io.BytesIO(accuracy_plot(rows))).size
    one_wide, one_high = Image.open(io.BytesIO(accuracy_plot(rows[:3]))).size
    assert wide > 1.5 * one_wide and high > 1.5 * one_high

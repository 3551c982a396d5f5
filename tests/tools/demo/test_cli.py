"""The command line: options, and an error message with exit status 2 for whatever goes wrong."""

import importlib.util
import json
from importlib import metadata

import pytest
from PIL import Image
from typer.testing import CliRunner

from sharp_compile.tools import cli


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def all_installed(monkeypatch):
    """For what is checked before torchvision is first used."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_help_has_every_option_with_its_default():
    result = run("demo", "--help")
    assert result.exit_code == 0
    for option in ("video", "model", "retention", "layer", "selector", "frames", "repeats", "output", "json"):
        assert f"--{option}" in result.output
    for default in ("0.1", "sharp-demo.png", "8", "5"):
        assert f"[default: {default}]" in result.output


def test_version(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: f"{name} 1.2.3")
    result = run("--version")
    assert (result.exit_code, result.output) == (0, "sharp-compile 1.2.3\n")


def test_what_is_not_installed_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else object())
    result = run("demo")
    assert result.exit_code == 2
    assert "error: the demo needs torchvision: pip install 'sharp-compile[video]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--selector", "shrap"], "'sharp'"),
        (["--retention", "0"], "retention"),
        (["--layer", "-1"], "layer"),
        (["--output", "/nowhere/at/all.png"], "there is no folder /nowhere/at"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(all_installed, arguments, message):
    result = run("demo", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and message in result.stderr


@pytest.mark.parametrize("option", ["--frames", "--repeats"])
def test_counts_are_at_least_one(option):
    assert run("demo", option, 0).exit_code == 2


@pytest.mark.torchvision
def test_a_missing_video_and_a_missing_checkpoint_are_named(tmp_path):
    for option, name in (("--video", "none.mp4"), ("--model", "none")):
        path = tmp_path / name
        result = run("demo", option, path, "--output", tmp_path / "a.png")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {path}: there is no such")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torchvision
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    result = run("demo", "--model", tmp_path, "--output", tmp_path / "a.png")
    assert result.exit_code == 2
    assert f"error: {tmp_path}: no checkpoint of a video model" in result.stderr


@pytest.mark.torchvision
def test_a_machine_without_a_compiler_is_told_so_at_once(tmp_path):
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        result = run("demo", "--output", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "error: Inductor needs a C++ compiler" in result.stderr


@pytest.fixture
def smaller(monkeypatch):
    from sharp_compile.tools.demo import models

    monkeypatch.setitem(models.DECODER, "num_hidden_layers", 4)


@pytest.mark.torchvision
@pytest.mark.slow
def test_the_whole_demo(tmp_path, smaller):
    picture, numbers = tmp_path / "a.png", tmp_path / "a.json"
    arguments = ("--frames", 2, "--repeats", 1, "--retention", 0.25)
    result = run("demo", *arguments, "--output", picture, "--json", numbers)
    assert result.exit_code == 0, result.output
    assert "LLaVA-OneVision" in result.output and "Qwen2.5-VL" in result.output
    assert "weights are random" in result.output

    rows = json.loads(numbers.read_text())["rows"]
    assert [row["name"] for row in rows] == ["eager", "inductor", "sharp"] * 2
    for eager, inductor, sharp in (rows[:3], rows[3:]):
        full, short = sharp["sequence_length"], sharp["pruned_length"]
        assert short < full / 2
        assert eager["cache_lengths"] == inductor["cache_lengths"] == [full] * 4
        assert sharp["cache_lengths"] == [full, full, short, short]
        assert sharp["decoder_flops"] < eager["decoder_flops"] == inductor["decoder_flops"]
        assert sharp["flop_limit"] > 1 == inductor["flop_limit"]
        assert inductor["speedup_vs_inductor"] == 1
        assert sharp["picture"] == str(picture)
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 1000


@pytest.mark.torchvision
@pytest.mark.slow
def test_a_checkpoint_in_a_folder(tmp_path, smaller):
    from sharp_compile.tools.demo import models

    model, processor = next(models.built_in()).load()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    numbers = tmp_path / "a.json"
    arguments = ("--model", tmp_path / "saved", "--frames", 2, "--repeats", 1)
    result = run("demo", *arguments, "--output", tmp_path / "a.png", "--json", numbers)
    assert result.exit_code == 0, result.output
    assert "weights are random" not in result.output
    rows = json.loads(numbers.read_text())["rows"]
    assert [(row["model"], row["name"]) for row in rows] == [
        ("saved", "eager"),
        ("saved", "inductor"),
        ("saved", "sharp"),
    ]
    assert rows[2]["pruned_length"] < rows[2]["sequence_length"]


@pytest.mark.torchvision
@pytest.mark.slow
def test_a_checkpoint_answers_in_full_and_pruned(tmp_path):
    """The shipped model can be asked like any other: its processor resizes, and the question is one that it reads."""
    from sharp_compile.tools.evaluation import MODELS

    result = run("demo", "--model", MODELS / "seed-1", "--repeats", 1, "--output", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    _, told = result.output.split("Question: color of disc ?")
    assert told.split()[:3] == ["full", "model", "pruned"]

"""`sharp-compile explain`, from its options to its files."""

import json

import pytest
from typer.testing import CliRunner

from sharp_compile.tools import cli


def run(*arguments):
    arguments = ["explain", *(str(argument) for argument in arguments)]
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})


def test_the_small_trained_model(tmp_path):
    page, facts = tmp_path / "a.html", tmp_path / "a.json"
    result = run("--output", page, "--json", facts, "--retention", 0.2, "--world", "sparse")
    assert result.exit_code == 0, result.output
    assert "257 -> 52" in result.output and str(page) in result.output.replace("\n", "")
    content = json.loads(facts.read_text())
    (row,) = [row for row in content["rows"] if row["pruned"]]
    assert (row["visual_tokens"], row["kept_tokens"], row["layer"], row["num_layers"]) == (257, 52, 1, 6)
    assert row["flops"][1] < row["flops"][0] and content["versions"] and content["machine"]
    text = page.read_text()
    assert text.count("<figure>") == 17, "16 frames, and the token after them"
    assert text.count("data:image/jpeg") == 16


@pytest.mark.slow
def test_what_can_not_be_pruned_is_a_page_too(tmp_path):
    page = tmp_path / "a.html"
    result = run("--output", page, "--layer", 5)
    assert result.exit_code == 0, result.output
    assert "Nothing was pruned in this call" in page.read_text()
    assert "leaves no later layer to shorten" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--selector", "shrap"], "'sharp'"),
        (["--retention", "0"], "retention"),
        (["--world", "real"], "there are sparse, clutter, crowded"),
        (["--video", "a.mp4"], "--video a.mp4 needs --model"),
        (["--output", "/nowhere/at/all.html"], "there is no folder /nowhere/at"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and message in result.stderr


@pytest.mark.torchvision
def test_a_checkpoint_in_a_folder(tmp_path, monkeypatch):
    from sharp_compile.tools.demo import models

    monkeypatch.setitem(models.DECODER, "num_hidden_layers", 3)
    model, processor = list(models.built_in())[1].load()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    page = tmp_path / "a.html"
    result = run("--model", tmp_path / "saved", "--frames", 2, "--question", "Who?", "--output", page)
    assert result.exit_code == 0, result.output
    assert "<h1>saved: Who?</h1>" in page.read_text()
    assert page.read_text().count("data:image/jpeg") == 1, "two frames become one grid of tokens"


@pytest.mark.torchvision
def test_a_missing_checkpoint_is_named(tmp_path):
    result = run("--model", tmp_path / "none", "--output", tmp_path / "a.html")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'none'}: there is no such folder")
    assert list(tmp_path.iterdir()) == []

"""The command: its table, its file, its picture and its exit code."""

import json

import pytest
import torch
from typer.testing import CliRunner

from sharp_compile.tools.check import run
from sharp_compile.tools.check.rows import Counted, Fact, Kernel, Prefill, Profile, Scoring, Verdict
from sharp_compile.tools.cli import app

MEASURED = {"spread_s": 0.001, "first_token_s": 0.2, "repeats": 5}
FOUND = [
    Fact("machine", "a machine"),
    Verdict("kernels", "a kernel, float32", True, "5 cases", 1.0),
    Counted(1000, None, 800),
    Counted(1000, 0.1, 100),
    Prefill("inductor", 1000, None, True, 1032, 1032, 0.6, peak_bytes=3 * 10**9, **MEASURED),
    Prefill("sharp", 1000, 0.1, True, 1032, 132, 0.1, peak_bytes=10**9, **MEASURED),
    Prefill("inductor", 1000, None, False, 1032, 1032, 0.5, peak_bytes=2 * 10**9, **MEASURED),
    Scoring(1000, True, 0.02, 0.005),
    Profile("sharp", 1000, 0.1, 0.1, 0.09, 3, 0.002, (Kernel("a product", 56, 0.05),)),
]


@pytest.fixture
def command(monkeypatch):
    """Runs the command on results that are given, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(found, *arguments):
        monkeypatch.setattr(run, "_results", lambda *given: iter(found))
        return CliRunner().invoke(app, ["check", "--device", "cpu", *arguments])

    return call


def test_all_right(command, tmp_path):
    files = tmp_path / "check.json", tmp_path / "check.png"
    result = command(FOUND, "--json", str(files[0]), "--plot", str(files[1]))
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "1,032 > 132 yes sharp, 10% 100.0 1.0 6.00x 8.00x 75% 200.0 1.00" in lines
    assert "1,000 moves 20.00 5.00 25%" in lines
    assert "a product 56 50.00 50%" in lines
    assert any(
        line.startswith("The mask of 1,032 x 1,032 (1 M entries) costs inductor +100.0 ms, +20%") for line in lines
    )
    assert any(line.startswith("All right.") for line in lines)
    content = json.loads(files[0].read_text())
    assert content["facts"] == {"machine": "a machine"}
    assert [row["median_s"] for row in content["prefill"]] == [0.6, 0.1, 0.5]
    assert content["profile"][0]["kernels"] == [{"name": "a product", "count": 56, "seconds": 0.05}]
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_one_wrong(command):
    wrong = Verdict("families", "a family, forward", False, "other tokens")
    result = command([*FOUND, wrong, Verdict("prefill", "the rest", None, "no time was left")])
    assert result.exit_code == 1
    assert "1 of 3 comparisons are wrong" in result.output
    assert "wrong: a family, forward: other tokens" in result.output
    assert "1 not run" in result.output


def test_a_run_that_is_cut_off_leaves_its_file(command, tmp_path):
    def found():
        yield from FOUND[:2]
        raise KeyboardInterrupt

    command(found(), "--json", str(tmp_path / "check.json"))
    assert len(json.loads((tmp_path / "check.json").read_text())["verdicts"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there():
    result = CliRunner().invoke(app, ["check", "--device", "cuda"])
    assert result.exit_code == 2
    assert "--device cuda: torch " in result.output


def test_bad_options(tmp_path):
    assert "--device tpu: must be cuda or cpu" in CliRunner().invoke(app, ["check", "--device", "tpu"]).output
    assert CliRunner().invoke(app, ["check", "--minutes", "0"]).exit_code == 2
    missing = tmp_path / "none" / "check.json"
    assert "there is no folder" in CliRunner().invoke(app, ["check", "--json", str(missing)]).output


@pytest.mark.slow
def test_the_whole_check_on_this_cpu(tmp_path, monkeypatch):
    """Everything, for real: the kernels interpreted, four families, a prefill that Inductor compiles."""
    monkeypatch.setenv("COLUMNS", "200")
    files = [tmp_path / name for name in ("check.json", "check.png", "trace.json.gz")]
    options = [f"--{name}={path}" for name, path in zip(("json", "plot", "trace"), files, strict=True)]
    result = CliRunner().invoke(app, ["check", "--device", "cpu", "--minutes", "15", *options])
    assert result.exit_code == 0, result.output
    content = json.loads(files[0].read_text())
    assert not [row for row in content["verdicts"] if row["right"] is False]
    waits = "no synchronisation: "  # of a device
    assert all(row["name"].startswith(waits) == (row["right"] is None) for row in content["verdicts"])
    assert {row["name"].rpartition(", ")[0] for row in content["verdicts"]} >= {
        "causal_attention",
        "masked_attention",
        "kernels of attention, sharp, 10%",
        "peak of sharp, 10%, 3,136 tokens",
    }
    assert "LLaVA-OneVision, loaded with FlashAttention" in {row["name"] for row in content["verdicts"]}
    assert {row["way"] for row in content["prefill"]} == {"eager", "inductor", "sharp"}
    assert content["prefill"][-1]["pruned_length"] < content["prefill"][-1]["sequence_length"]
    assert all(content[name] for name in ("facts", "counted", "scoring", "profile"))
    assert all(path.exists() for path in files)

"""`sharp-compile bench`: options, tables, the JSON file and the plots."""

import json
from dataclasses import fields

import pytest
from PIL import Image
from typer.testing import CliRunner

from sharp_compile.tools import cli
from sharp_compile.tools.bench.rows import Row
from sharp_compile.tools.bench.run import fits
from sharp_compile.tools.timing import STAGES

CONTRACT = {
    *("name", "model", "layers", "sequence_length", "pruned_length", "retention", "layer", "median_s"),
    *("speedup_vs_inductor", "flops", "flop_limit", "fraction_of_limit", "peak_bytes", "compile_s", "passes_s"),
    *("decode_s_per_token", "compile_stages"),
}
META = {"flops", "flops_share", "kv_bytes", "activation_peak_bytes", "square_tensors"}


@pytest.fixture
def cold_caches(monkeypatch, tmp_path):
    """Inductor has something to do: in warm caches it finds what an earlier run compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "caches"))


def run(*arguments):
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.mark.parametrize("decode", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_small_benchmark(tmp_path, decode, cold_caches):
    numbers, time, speed = tmp_path / "numbers.json", tmp_path / "time.png", tmp_path / "speed.png"
    result = run(
        *("--width", 128, "--layers", 2, "--layer", 0, "--tokens", 64, "--repeats", 2, "--decode", decode),
        *("--selector", "fastv", "--json", numbers, "--plot-time", time, "--plot-speedup", speed),
    )
    assert result.exit_code == 0, result.output
    content = json.loads(numbers.read_text())
    rows = content["rows"]
    names = ["eager", "inductor", "handpatched", "sharp", "sharp-end"]
    assert [row["name"] for row in rows] == names
    assert all(set(row) >= CONTRACT and row["median_s"] > 0 and row["peak_bytes"] > 0 for row in rows)
    eager, plain, by_hand, sharp, end = rows
    assert eager["flops"] == plain["flops"] > end["flops"] > sharp["flops"]
    assert by_hand["flops"] == end["flops"]
    assert plain["speedup_vs_inductor"] == 1
    assert sharp["speedup_vs_inductor"] == pytest.approx(plain["median_s"] / sharp["median_s"])
    assert sharp["fraction_of_limit"] == pytest.approx(sharp["speedup_vs_inductor"] / sharp["flop_limit"])
    assert sharp["pruned_length"] == by_hand["pruned_length"] < sharp["sequence_length"]
    assert sharp["passes_s"] > 0 and plain["passes_s"] is None
    assert (sharp["decode_s_per_token"] or 0) > 0 if decode else sharp["decode_s_per_token"] is None
    stages = [row["compile_stages"] for row in rows]
    assert all(set(each) == set(STAGES) for each in stages)
    compiled = {"eager": False, "inductor": True, "handpatched": False, "sharp": True, "sharp-end": True}
    assert [name for name, each in zip(names, stages, strict=True) if each["inductor"] > 0] == [
        name for name in names if compiled[name]
    ]
    # Ours are the passes; Dynamo's traces are there as well. What is not counted is the run itself.
    assert all(sum(each.values()) > 0 for name, each in zip(names, stages, strict=True) if compiled[name])
    assert sharp["compile_stages"]["passes"] > plain["compile_stages"]["passes"] >= 0
    assert sharp["distinct_layers"] and plain["distinct_layers"] is None
    assert content["fits"] == []
    assert all(row["seconds_by_kind"]["products"] > 0 for row in rows) and not any(row["vision"] for row in rows)
    assert all(Image.open(picture).size[0] > 400 for picture in (time, speed))
    assert "speed-up: over plain Inductor" in " ".join(result.output.split())


@pytest.mark.slow
def test_with_a_vision_tower_and_without_a_mask(tmp_path):
    numbers = tmp_path / "numbers.json"
    result = run(
        *("--width", 128, "--layers", 3, "--tokens", 196, "--repeats", 1, "--decode", 1, "--vision", "--no-mask"),
        *("--json", numbers),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(numbers.read_text())["rows"]
    assert all(row["vision"] and row["decode_s_per_token"] > 0 for row in rows)
    assert "after a vision tower of 3 layers" in " ".join(result.output.split())


def peaks(tmp_path, mask):
    numbers = tmp_path / f"numbers{mask}.json"
    sizes = ("--width", 128, "--layers", 3, "--tokens", 512, "--tokens", 1024)
    result = run("--peak", mask, *sizes, "--selector", "uniform", "--json", numbers)
    assert result.exit_code == 0, result.output
    content = json.loads(numbers.read_text())
    assert [row["sequence_length"] for row in content["rows"]] == [544, 1056]
    (fit,) = content["fits"]
    # A matrix of pairs would be a byte for each at the least.
    assert abs(fit["peak_bytes_per_pair"]) < 0.1 and fit["peak_exponent"] < 1.1
    return [row["peak_bytes"] for row in content["rows"]]


def test_peaks_grow_with_the_length(tmp_path):
    assert peaks(tmp_path, "--mask")
    assert "--meta and --peak" in run("--meta", "--peak").output


@pytest.mark.slow
def test_peaks_are_those_of_the_prompt_without_a_mask(tmp_path):
    with_mask, without = (peaks(tmp_path, mask) for mask in ("--mask", "--no-mask"))
    assert all(ours <= 1.1 * theirs for ours, theirs in zip(with_mask, without, strict=True))


def test_a_fit_finds_the_shape():
    empty = dict.fromkeys((field.name for field in fields(Row)), 0) | {"name": "sharp", "selector": "fastv"}
    rows = [
        Row(
            **empty
            | {"sequence_length": length, "median_s": 2e-4 * length + 3e-8 * length**2, "peak_bytes": 5000 * length}
        )
        for length in (1000, 2000, 4000)
    ]
    (found,) = fits(rows)
    assert found["peak_bytes_per_token"] == pytest.approx(5000) and found["peak_exponent"] == pytest.approx(1)
    assert found["peak_bytes_per_pair"] == pytest.approx(0, abs=1e-6)
    assert found["name"] == "sharp"
    assert found["seconds_per_token"] == pytest.approx(2e-4)
    assert found["seconds_per_pair"] == pytest.approx(3e-8)
    assert 1 < found["exponent"] < 2
    assert fits(rows[:1]) == []


def test_counting(tmp_path):
    numbers = tmp_path / "numbers.json"
    result = run("--meta", "--model", "llava-onevision-0.5b", "--stages", "0:0.5,1:0.1", "--json", numbers)
    assert result.exit_code == 0, result.output
    full, pruned = json.loads(numbers.read_text())["rows"]
    assert set(full) >= META and set(pruned) >= META
    assert full["flops_share"] == 1 and 0 < pruned["flops_share"] < 0.3
    assert full["square_tensors"] > 0 == pruned["square_tensors"]
    assert (full["sequence_length"], pruned["layer"], pruned["retention"]) == (6305, 1, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt"], "--model gpt: there are qwen2-0.5b"),
        (["--width", 100], "--width 100: must be a multiple of the width of a head"),
        (["--width", 512, "--full-size"], "give it or --full-size, not both"),
        (["--layers", 4, "--layer", 3], "--layer 3: the model has 4 layers, and one must follow"),
        (["--retention", 0], "option retention=0"),
        (["--selector", "fast"], "option selector='fast'"),
        (["--dtype", "int8"], "--dtype int8: there are float32"),
        (["--stages", "1-0.5"], "must be LAYER:SHARE"),
        (["--vision", "--tokens", 100], "--tokens 100: must be a multiple of 196"),
        (["--meta", "--repeats", 3], "--repeats is for what is run, without --meta"),
        (["--json", "/nowhere/numbers.json"], "there is no folder"),
    ],
)
def test_bad_options(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")

"""The JSON file: what the contract promises, and never half a file."""

import json

import pytest

from sharp_compile.tools import results_io
from sharp_compile.tools.demo.row import Row

BENCH = """name model layers sequence_length pruned_length retention layer median_s speedup_vs_inductor flops
flop_limit fraction_of_limit peak_bytes compile_s passes_s decode_s_per_token picture"""


def row(**changes):
    values = {
        "name": "sharp",
        "model": "LLaVA-OneVision",
        "layers": 3,
        "sequence_length": 100,
        "pruned_length": 20,
        "retention": 0.1,
        "layer": 1,
        "median_s": 0.5,
        "speedup_vs_inductor": 4.0,
        "flops": 10,
        "flop_limit": 5.0,
        "fraction_of_limit": 0.8,
        "compile_s": 9.0,
        "decoder_flops": 8,
        "cache_lengths": [100, 100, 20],
        "picture": "sharp-demo.png",
    }
    return Row(**(values | changes))


def test_the_file_is_one_object_with_the_rows_of_the_contract(tmp_path):
    path = tmp_path / "numbers.json"
    results_io.write_json(path, [row(), row(name="eager", layer=None, picture=None)])
    content = json.loads(path.read_text())
    assert set(content) == {"versions", "machine", "rows"}
    assert {"python", "torch", "transformers"} <= set(content["versions"])
    assert "torch" in content["machine"]
    assert [entry["name"] for entry in content["rows"]] == ["sharp", "eager"]
    assert set(BENCH.split()) <= set(content["rows"][0])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "numbers.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(results_io.os, "replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        results_io.write(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    results_io.write(tmp_path / "written", b"x")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "usual").stat().st_mode

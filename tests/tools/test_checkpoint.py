"""What a folder may do to who loads it: nothing but give weights, or an error that says what is wrong with it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from sharp_compile.tools.checkpoint import CheckpointError, load
from sharp_compile.tools.evaluation import MODELS


class Bomb:
    """Writes a file when it is read as pickle."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint, of which the processor is not looked at: it needs torchvision."""
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: "processor")
    return Path(shutil.copytree(MODELS / "seed-1", tmp_path / "checkpoint"))


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_in_its_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def no_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def no_json(folder):
    (folder / "config.json").write_text("{")


def json_of_another_kind(folder):
    (folder / "config.json").write_text("[1]")


def deep_json(folder):
    (folder / "config.json").write_text("[" * 10**5)


def no_config(folder):
    (folder / "config.json").unlink()


def config_of_text(folder):
    change(folder, text_config="none")


def config_of_another_size(folder):
    change(folder, text_config=json.loads((folder / "config.json").read_text())["text_config"] | {"hidden_size": 64})


def index_of_nothing(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def index_of_what_is_missing(folder):
    (folder / "model.safetensors").unlink()
    text = json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, cut_in_its_header, no_safetensors, empty, no_json, json_of_another_kind, deep_json, no_config),
        *(config_of_text, config_of_another_size, index_of_nothing, index_of_what_is_missing),
    ],
)
def test_a_damaged_checkpoint_is_an_error_of_one_line(folder, damage):
    damage(folder)
    with pytest.raises(CheckpointError) as refusal:
        load(str(folder), torch.float32, local=True)
    assert str(refusal.value) and "\n" not in str(refusal.value)


def test_a_whole_one_is_loaded(folder):
    model, processor = load(str(folder), torch.float32, local=True)
    assert model.config.model_type == "llava_onevision" and processor == "processor"


def alone(folder):
    return "pytorch_model.bin"


def named_by_an_index(folder):
    text = json.dumps({"metadata": {}, "weight_map": {"a": "weights.bin"}})
    (folder / "model.safetensors.index.json").write_text(text)
    return "weights.bin"


def named_by_the_config(folder):
    change(folder, transformers_weights="adapter_model.bin")
    return "adapter_model.bin"


@pytest.mark.parametrize("place", [alone, named_by_an_index, named_by_the_config])
def test_pickle_is_never_read(folder, tmp_path, place):
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "marker"
    path = folder / place(folder)
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(CheckpointError, match="safetensors"):
        load(str(folder), torch.float32, local=True)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "it would have gone off"


@pytest.mark.parametrize("kind", ["new", "known"])
def test_code_that_comes_with_a_checkpoint_runs_only_if_it_may(folder, tmp_path, kind):
    marker = tmp_path / "marker"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    parts = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
    change(folder, auto_map=parts, **({"model_type": "of_its_own"} if kind == "new" else {}))
    if kind == "new":
        with pytest.raises(CheckpointError, match="custom code"):
            load(str(folder), torch.float32, local=True)
    else:
        load(str(folder), torch.float32, local=True)
    assert not marker.exists()
    if kind == "new":
        with pytest.raises(CheckpointError):
            load(str(folder), torch.float32, trust_remote_code=True, local=True)
        assert marker.exists(), "it can run"

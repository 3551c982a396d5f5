"""Answers of a checkpoint in a folder, of moderate size and random weights."""

import importlib.util
import shutil

import pytest
import torch

from sharp_compile.tools.batch import arguments
from sharp_compile.tools.batch.answer import Answerer
from sharp_compile.tools.batch.run import run
from sharp_compile.tools.demo import DemoError, video
from sharp_compile.tools.demo.run import CLIP
from tests.tools.demo.test_video import write_video

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("transformers' video processors need torchvision", allow_module_level=True)

from sharp_compile.tools.demo import models

pytestmark = pytest.mark.torchvision

WORDS = ("--frames", "2", "--inner", "eager", "--max-new-tokens", "3", "--question", "Who?")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two videos of different shape and a file that is none, beside `my-model`."""
    monkeypatch.setitem(models.DECODER, "num_hidden_layers", 3)
    model, processor = next(models.built_in()).load()
    model.save_pretrained(tmp_path / "my-model")
    processor.save_pretrained(tmp_path / "my-model")
    (tmp_path / "videos").mkdir()
    shutil.copy(CLIP, tmp_path / "videos" / "a.mp4")
    write_video(tmp_path / "videos" / "b.mp4", 20)
    (tmp_path / "videos" / "c.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request(*words):
    parser = arguments.parser("")
    return arguments.request(parser, parser.parse_args(["videos", "--model", "my-model", *WORDS, *words]))


def test_a_checkpoint_answers_as_the_same_model_does_when_it_is_called_by_hand(folder, capsys):
    records = {}

    def answers(asked, at, names):
        for record in map(Answerer(asked, at), names):
            records[record.video] = record
            yield record

    assert run(request(), answers) == 1
    told = capsys.readouterr()
    assert "failed: c.mp4: not a video that can be decoded" in told.err
    assert "3 videos: 2 answered, 1 failed" in told.out
    full = Answerer(request("--retention", "1").asked, folder / "videos")
    for name in ("a.mp4", "b.mp4"):
        case = models.prepare(models.local(folder / "my-model"), video.read(folder / "videos" / name, 2), "Who?")
        assert (records[name].visual_tokens, records[name].kept_tokens) == (393, 40)
        assert records[name].unpruned is None
        with torch.no_grad():
            tokens = case.model.generate(**case.inputs, max_new_tokens=3, do_sample=False)[0, case.sequence_length :]
        _, processor = models.local(folder / "my-model").load()
        assert full(name).answer == processor.decode(tokens, skip_special_tokens=True).strip()


def test_a_folder_that_is_no_checkpoint(folder):
    (folder / "my-model" / "config.json").unlink()
    with pytest.raises(DemoError, match="my-model: no checkpoint of a video model"):
        Answerer(request().asked, folder / "videos")

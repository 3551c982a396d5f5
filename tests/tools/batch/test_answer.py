"""Answers of the small trained model; those of a checkpoint are in test_checkpoint.py."""

from dataclasses import replace

import pytest
import torch

import sharp_compile
from sharp_compile.tools.batch import BatchError
from sharp_compile.tools.batch.answer import TRAINED, Answerer, check
from sharp_compile.tools.batch.clips import render, right_answers
from sharp_compile.tools.batch.results import Asked, Record
from tests.tools.demo.test_video import write_video

ASKED = Asked(TRAINED, "how-many objects in-all ?", 16, 0.1, 1, "sharp", "eager", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 rendered videos and their right answers."""
    folder = tmp_path_factory.mktemp("videos")
    return folder, right_answers(render(folder, 12), ASKED.question)


def test_the_trained_model_answers_right_whatever_else_is_in_the_folder(folder, monkeypatch):
    folder, right = folder
    names = list(right)
    whole = (folder / names[0]).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no video")
    write_video(folder / "none.avi", 0)
    write_video(folder / "large.mp4", 20)
    answer = Answerer(ASKED, folder)

    first = answer(names[0])
    errors = {bad: answer(bad).error for bad in ("cut.mkv", "text.mp4", "none.avi", "large.mp4", "gone.mp4")}
    assert errors["cut.mkv"].endswith("frames of 32 x 32 pixels; the small trained model reads 16 of 32 x 32")
    assert errors["text.mp4"].startswith("not a video that can be decoded")
    assert errors["none.avi"] == "the video has no frames"
    assert errors["large.mp4"] == "16 frames of 80 x 48 pixels; the small trained model reads 16 of 32 x 32"
    assert errors["gone.mp4"] == "there is no such file"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "isin", lambda *tensors: 1 / 0)
        assert answer(names[1]).error == "ZeroDivisionError: division by zero"

    records = [first, *map(answer, names[1:])]
    assert sum(record.answer == right[record.video] for record in records) >= 11
    for record in records:
        assert (record.error, record.unpruned) == (None, None)
        assert (record.visual_tokens, record.kept_tokens) == (257, 26)


@pytest.mark.parametrize(("retention", "unpruned"), [(1.0, None), (0.1, "no graph of it was compiled")])
def test_only_what_was_asked_to_prune_ran_unpruned(folder, monkeypatch, retention, unpruned):
    folder, right = folder
    monkeypatch.setattr(sharp_compile, "compile", lambda model, **options: model)
    name = next(iter(right))
    assert Answerer(replace(ASKED, retention=retention), folder)(name) == Record(
        name, right[name], None, 257, 257, unpruned
    )


def test_a_record_says_why_a_model_ran_unpruned(folder):
    folder, right = folder
    answer = Answerer(replace(ASKED, layer=9), folder)
    for name in list(right)[:2]:
        record = answer(name)
        assert record.answer == right[name]
        assert record.kept_tokens == record.visual_tokens == 257
        assert "no later layer" in record.unpruned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retention": 1.5}, "retention"),
        ({"selector": "shrap"}, "sharp"),
        ({"question": "color of spoon ?"}, "--question 'color of spoon [?]'.*no 'spoon', but red, "),
        ({"question": "color of <video> ?"}, "no '<video>', but"),
        ({"question": "color ring ?"}, "three words and a [?]"),
        ({"question": ""}, "three words and a [?]"),
        ({"model": "/no/such/folder"}, "--model /no/such/folder: there is no such folder"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(change, message):
    check(ASKED)
    with pytest.raises(BatchError, match=message):
        check(replace(ASKED, **change))

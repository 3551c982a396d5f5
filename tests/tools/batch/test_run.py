"""Runs that are stopped and go on, what they print and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharp_compile.tools.batch import arguments
from sharp_compile.tools.batch.results import Record
from sharp_compile.tools.batch.run import CLIPS, run

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples" / "folder_of_videos.py"
NAMES = ["a.mp4", "b.mp4", "sub/c.mp4", os.fsdecode(b"\xff.mp4")]


def request(*words):
    parser = arguments.parser("")
    return arguments.request(parser, parser.parse_args([str(word) for word in words]))


@pytest.fixture
def folder(tmp_path):
    """Four videos, which nobody opens."""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for name in NAMES:
        (folder / name).touch()
    return folder


def red(asked, folder, videos):
    """Answers all, and some twice, as workers may that are asked again."""
    for video in videos:
        yield Record(video, "red", None, 100, 10)
        yield Record(video, "blue", None, 100, 10)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_video_has_one_answer(folder, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    assert run(request(folder, "--output", output), red) == 0
    assert [(line["video"], line["answer"]) for line in lines(output)] == [(name, "red") for name in sorted(NAMES)]
    assert capsys.readouterr().out.splitlines() == [
        "4 videos: 4 answered, 0 failed",
        "visual tokens: 40 of 400 kept",
        f"Answers: {output}",
    ]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("the network is gone"), None])
def test_a_run_that_was_stopped_goes_on_with_what_is_missing(folder, tmp_path, capsys, stop):
    asked = []

    def stopping(request, folder, videos):
        for number, video in enumerate(videos):
            if number == 2:
                if stop is None:  # whoever answers forgot the rest
                    return
                raise stop
            asked.append(video)
            yield Record(video, "red")

    words = (folder, "--output", tmp_path / "answers.jsonl")
    assert run(request(*words), stopping) == (130 if stop is KeyboardInterrupt else 1)
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and ("stopped" in told or "network" in told or "no answer came for 2" in told)
    assert run(request(*words), stopping) == 0
    assert asked == sorted(NAMES)
    assert "4 videos: 4 answered, 0 failed (2 of them earlier)" in capsys.readouterr().out
    assert run(request(*words), lambda *_: pytest.fail("all are answered")) == 0


def test_videos_that_failed_are_told_each_time_and_not_asked_again(folder, tmp_path, capsys):
    def failing(asked, folder, videos):
        return [Record(name, **{"error": "broken"} if "c" in name else {"answer": "red"}) for name in videos]

    words = (folder, "--output", tmp_path / "answers.jsonl")
    for answers in (failing, lambda *_: pytest.fail("all have a record")):
        assert run(request(*words), answers) == 1
        told = capsys.readouterr()
        assert told.err.splitlines() == ["failed: sub/c.mp4: broken"]
        assert "4 videos: 3 answered, 1 failed" in told.out


def test_right_answers_are_counted_and_those_that_ran_unpruned(folder, tmp_path, capsys):
    def unpruned(asked, folder, videos):
        return [Record(name, "Red ", None, 100, 100, "too short") for name in videos]

    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps({"a.mp4": "red", "sub/c.mp4": "blue", "another.mp4": "red"}))
    assert run(request(folder, "--output", tmp_path / "a", "--expected", expected), unpruned) == 0
    told = capsys.readouterr().out
    assert "right: 1 of 2 (50.0%)" in told
    assert "4 ran unpruned: too short" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none",), "none: there is no such folder"),
        (("videos", "--retention", "2"), "retention"),
        (("videos", "--output", "none/answers.jsonl"), "none/answers.jsonl"),
        (("videos", "--output", "videos"), "videos"),
        (("videos", "--expected", "none"), "none"),
        (("videos", "--expected", "list.json"), "--expected list.json: has to be"),
        (("videos", "--expected", "bad.json"), "--expected bad.json: not a file in JSON"),
        (("videos", "--model", "none"), "--model .*none: there is no such folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    Path("bad.json").write_text("a: b")
    assert run(request(*words), lambda *_: pytest.fail("there is nothing to ask")) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and re.search(f"^error: .*{message}", told[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("videos", "--frames", "4"), "--frames 4: only with --model"),
        (("--model", "my-model"), "--model my-model: say in which folder"),
        (("--expected", "a.json"), "--expected a.json: of rendered videos"),
        (("videos", "--model", "my-model", "--frames", "0"), "0: has to be 1 or more"),
    ],
)
def test_arguments_that_contradict_each_other(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        request(*words)
    assert message in capsys.readouterr().err


def test_without_a_folder_there_are_rendered_videos(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def two(asked, folder, videos):
        assert asked.question == "how-many objects in-all ?"
        return [Record(video, "two") for video in videos if (folder / video).is_file()]

    assert run(request(), two) == 0
    told = capsys.readouterr().out
    assert f"{CLIPS} videos: {CLIPS} answered, 0 failed" in told
    assert 0 < int(re.search(rf"right: (\d+) of {CLIPS} ", told)[1]) < CLIPS / 2
    assert len(lines(tmp_path / "answers.jsonl")) == CLIPS


def test_a_process_that_was_killed_left_what_the_next_one_needs(tmp_path):
    folder, output = tmp_path / "videos", tmp_path / "answers.jsonl"
    folder.mkdir()
    names = [f"{number:04}.mp4" for number in range(1000)]  # that can't be read, which takes some milliseconds each
    for name in names:
        (folder / name).write_text("no video")
    process = subprocess.Popen([sys.executable, SCRIPT, folder, "--output", output])
    while not output.exists() or output.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = output.read_bytes()
    assert 3 <= left.count(b"\n") < len(names)

    assert run(request(folder, "--output", output), red) == 1
    assert output.read_bytes().startswith(left[: left.rindex(b"\n") + 1])
    now = lines(output)
    assert [line["video"] for line in now] == names
    assert sum(line["answer"] is None for line in now) == left.count(b"\n")

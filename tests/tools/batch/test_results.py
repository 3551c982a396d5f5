"""The file of answers: whatever happens, whole lines, one for each video, all of one question."""

import errno
import json
import os
import re
from dataclasses import replace

import pytest

from sharp_compile.tools.batch import BatchError
from sharp_compile.tools.batch.results import Asked, Record, Results

ASKED = Asked("my-model", "What?", 8, 0.1, 1, "sharp", "eager", 64)
RED = Record("a/red.mp4", "red", None, 257, 26)
CUT = Record("cut.mp4", error="not a video")
ODD = Record(os.fsdecode(b"\xff\n.mp4"), 'a "quote"\nand \N{SNOWMAN}', None, 4, 4, "no visual tokens")


@pytest.fixture
def path(tmp_path):
    """A file with three records."""
    path = tmp_path / "answers.jsonl"
    with Results(path, ASKED) as results:
        for record in (RED, CUT, ODD):
            results.add(record)
    return path


def read(path, asked=ASKED):
    with Results(path, asked) as results:
        return results.records


def test_what_was_added_is_read_again(path):
    assert list(read(path).values()) == [RED, CUT, ODD]
    first = json.loads(path.read_bytes().splitlines()[0])
    assert (first["video"], first["answer"], first["asked"]["question"]) == ("a/red.mp4", "red", "What?")


def test_a_record_is_on_the_disk_when_it_was_added(tmp_path):
    with Results(tmp_path / "a", ASKED) as results:
        results.add(RED)
        assert (tmp_path / "a").read_bytes().count(b"\n") == 1


def test_a_video_has_one_record(path):
    before = path.read_bytes()
    with Results(path, ASKED) as results:
        results.add(replace(RED, answer="blue"))
        results.add(RED)
        assert results.records[RED.video] == RED
    assert path.read_bytes() == before


def test_wherever_a_write_was_cut_off_the_whole_lines_remain(path):
    whole = path.read_bytes()
    third = whole.rindex(b"\n", 0, -1) + 1
    for length in range(third, len(whole)):
        path.write_bytes(whole[:length])
        assert list(read(path).values()) == [RED, CUT]
        assert path.read_bytes() == whole[:third]
    with Results(path, ASKED) as results:
        results.add(ODD)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("taken", [0, 10])
def test_a_disk_that_is_full_leaves_whole_lines(path, monkeypatch, taken):
    before, write = path.read_bytes(), os.write
    left = [taken]

    def full(file, data):
        room, left[0] = left[0], 0
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:room])

    green = Record("green.mp4", "green")
    with Results(path, ASKED) as results:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, "write", full)
            results.add(green)
        assert path.read_bytes() == before
        results.add(green)
    assert list(read(path)) == [RED.video, CUT.video, ODD.video, "green.mp4"]


def test_two_runs_do_not_write_one_file(path):
    with Results(path, ASKED), pytest.raises(BatchError, match="another run is writing"):
        Results(path, ASKED)
    assert len(read(path)) == 3


@pytest.mark.parametrize(("name", "value"), [("question", "Who?"), ("retention", 0.2), ("model", "other")])
def test_answers_to_another_question_are_not_mixed(path, name, value):
    before = path.read_bytes()
    message = f"line 1: asked with {name} {getattr(ASKED, name)!r}, now it is {value!r}; name another file"
    with pytest.raises(BatchError, match=re.escape(message)):
        Results(path, replace(ASKED, **{name: value}))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"weights": [1, 2]}', "not a file of answers"),
        (b'{"video": "a.mp4", "answer": "red"}\n', "line 1: not an answer"),
        (b"[1]\n", "line 1: not an answer"),
        (b"\n", "line 1: not an answer"),
        (b"name,answer\na.mp4,red\n", "line 1: not an answer"),
        (b"\x89PNG\r\n\x1a\n\x00", "line 1: not an answer"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content, message):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(BatchError, match=message):
        Results(path, ASKED)
    assert path.read_bytes() == content


def test_a_second_answer_in_the_file_is_told(path):
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(BatchError, match=r"line 4: a second answer for a/red[.]mp4"):
        Results(path, ASKED)


def test_a_line_that_is_deleted_is_asked_again(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert list(read(path).values()) == [RED, ODD]

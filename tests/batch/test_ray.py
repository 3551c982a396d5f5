"""Ray Data: workers and the driver are killed, and every video is answered once."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sharp_compile.batch.answer import TRAINED, Answerer
from sharp_compile.batch.clips import render
from sharp_compile.batch.results import Asked

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra ray", allow_module_level=True)
if not Path("/proc/self/task").is_dir():
    pytest.skip("workers are found in /proc", allow_module_level=True)

SCRIPT = Path(__file__).parents[2] / "examples" / "ray_videos.py"
PATIENCE = 300  # seconds, for what is to happen at all

# Python imports this when it starts. A decoder that crashes takes its process along, as this does.
DEADLY = """
import os, signal
import av

def deadly(path, *arguments, open=av.open, **options):
    mark = os.fspath(path) + ".mark"
    if "deadly" in mark and not ("once" in mark and os.path.exists(mark)):
        with open_file(mark, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return open(path, *arguments, **options)

open_file, av.open = open, deadly
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script on `tmp_path / "videos"`, with files of Ray's own in a folder with a short name."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of its sockets have at most 107 letters
    # The token of its own cluster is made in the home folder.
    environment = {
        **os.environ,
        "HOME": scratch,
        "RAY_TMPDIR": scratch,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    started = []

    def begin(*words):
        command = [sys.executable, SCRIPT, "videos", "--workers", "2", "--cpus", "1", *words]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    shutil.rmtree(scratch, ignore_errors=True)


def read(path):
    """The whole lines of a file of answers that may be written just now."""
    *whole, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [json.loads(line) for line in whole]


def wait(process, until):
    end = time.monotonic() + PATIENCE
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def descendants(pid):
    """The processes below one, with the names that they gave themselves."""
    found = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found[child] = Path(f"/proc/{child}/cmdline").read_text().strip("\0")
            found |= descendants(child)
    return found


def workers(process):
    """The processes that are answering, or waiting to."""
    return [pid for pid, name in descendants(process.pid).items() if name.startswith("ray::MapWorker")]


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_videos_that_kill_their_workers_lose_no_other(start, tmp_path):
    """None of them can be read, so that no model has to be compiled."""
    names = [f"{number}.mp4" for number in range(12)]
    names += ["deadly.mp4", "deadly-once.mp4", os.fsdecode(b"\xff.mp4"), "a\nb.mp4"]
    for name in names:
        (tmp_path / "videos" / name).write_text("no video")
    process = start()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    records = read(tmp_path / "answers.jsonl")
    assert sorted(record["video"] for record in records) == sorted(names)
    errors = {record["video"]: record["error"] for record in records}
    assert errors.pop("deadly.mp4") == "its worker died 3 times"
    assert all(error.startswith("not a video") for error in errors.values())
    marks = {path.name: path.read_text() for path in (tmp_path / "videos").glob("*.mark")}
    assert marks == {"deadly.mp4.mark": "xxx", "deadly-once.mp4.mark": "x"}
    assert "16 videos: 0 answered, 16 failed" in out
    assert "failed: deadly.mp4: its worker died 3 times" in err.splitlines()
    assert r"failed: a\nb.mp4: not a video" in err and r"failed: \udcff.mp4: not a video" in err


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_driver_cost_no_answer_and_double_none(start, tmp_path):
    folder, output = tmp_path / "videos", tmp_path / "answers.jsonl"
    names = list(render(folder, 60))
    (folder / "cut.mkv").write_bytes((folder / names[0]).read_bytes()[:20_000])
    (folder / "empty.mp4").touch()

    process = start()
    wait(process, lambda: len(read(output)) >= 3)
    everyone = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = output.read_bytes()
    assert 3 <= len(read(output)) < 40, "it was killed in between"
    end = time.monotonic() + PATIENCE
    while not all(map(is_gone, everyone)):
        assert time.monotonic() < end, "workers outlive the driver"
        time.sleep(0.1)

    process = start()
    had = len(read(output))
    wait(process, lambda: len(read(output)) > had)
    killed = workers(process)
    assert len(killed) == 2
    os.kill(killed[0], signal.SIGKILL)
    assert len(read(output)) < len(names) - 2, "it was killed in between"
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    assert output.read_bytes().startswith(left[: left.rindex(b"\n") + 1])
    assert f"62 videos: 60 answered, 2 failed ({had} of them earlier)" in out

    records = {record["video"]: record["answer"] for record in read(output)}
    assert len(read(output)) == len(records) == 62
    alone = Answerer(Asked(TRAINED, "how-many objects in-all ?", 16, 0.1, 1, "sharp", "eager", 64), folder)
    assert records == {name: alone(name).answer for name in [*names, "cut.mkv", "empty.mp4"]}


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_loaded_is_one_line(start, tmp_path):
    pytest.importorskip("torchvision")
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "none").mkdir()
    process = start("--model", "none")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert any(line.startswith("error: ") and "no checkpoint of a video model" in line for line in err.splitlines())

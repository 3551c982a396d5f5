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

from sharp_compile.tools.batch.answer import TRAINED, Answerer
from sharp_compile.tools.batch.clips import render
from sharp_compile.tools.batch.results import Asked

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra ray", allow_module_level=True)
if not Path("/proc/self/task").is_dir():
    pytest.skip("workers are found in /proc", allow_module_level=True)

SCRIPT = Path(__file__).parents[3] / "examples" / "ray_videos.py"
PATIENCE = 900  # seconds, for what is to happen at all

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


@pytest.mark.parametrize(
    ("killer", "deaths", "error"),
    [
        ("deadly-once.mp4", 1, "not a video that can be decoded"),
        pytest.param("deadly.mp4", 3, "its worker died 3 times", marks=pytest.mark.slow),
    ],
)
def test_a_video_that_kills_its_worker_costs_no_other(start, tmp_path, killer, deaths, error):
    """None of them can be read, so that no model has to be compiled."""
    names = [killer, os.fsdecode(b"\xff.mp4"), "a\nb.mp4", *(f"{number}.mp4" for number in range(8))]
    for name in names:
        (tmp_path / "videos" / name).write_text("no video")
    process = start()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    records = read(tmp_path / "answers.jsonl")
    assert sorted(record["video"] for record in records) == sorted(names)
    errors = {record["video"]: record["error"] for record in records}
    assert (tmp_path / "videos" / f"{killer}.mark").read_text() == "x" * deaths
    assert errors.pop(killer).startswith(error)
    assert all(other.startswith("not a video that can be decoded") for other in errors.values())
    assert "11 videos: 0 answered, 11 failed" in out
    for name in (killer, r"a\nb.mp4", r"\udcff.mp4"):
        assert f"failed: {name}: " in err


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
@pytest.mark.torchvision
def test_a_checkpoint_that_cannot_be_loaded_is_one_line(start, tmp_path):
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "none").mkdir()
    process = start("--model", "none")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert any(line.startswith("error: ") and "no checkpoint of a video model" in line for line in err.splitlines())

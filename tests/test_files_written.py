"""Files that commands are to write: refused before the work where they can't be, and never half written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sharp_compile.tools import cli, results_io

COMMANDS = [
    ("demo", "--output"),
    ("demo", "--json"),
    ("explain", "--output"),
    ("explain", "--json"),
    ("eval", "--json"),
    ("eval", "--plot"),
    ("bench", "--json"),
    ("bench", "--plot-time"),
    ("bench", "--plot-speedup"),
]


@pytest.fixture(autouse=True)
def all_installed(monkeypatch):
    """For what is checked before anything is used."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def refused(command, option, path):
    result = CliRunner().invoke(cli.app, [command, option, str(path)])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(f"error: {path}: ")
    return result.stderr


@pytest.mark.parametrize(("command", "option"), COMMANDS)
def test_where_nothing_can_be_written_no_work_begins(command, option, tmp_path):
    (tmp_path / "file").touch()
    assert "there is no folder" in refused(command, option, tmp_path / "none" / "a")
    assert "there is no folder" in refused(command, option, tmp_path / "file" / "a")
    assert "this is a folder" in refused(command, option, tmp_path)
    refused(command, option, tmp_path / ("a" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert "no permission" in refused("eval", "--json", tmp_path / "a")


def test_a_folder_that_says_no_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"no permission to write {tmp_path}" in refused("eval", "--json", tmp_path / "a")


def test_a_full_disk_is_an_error_that_names_the_file():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no device that is full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        results_io.write(full, b"numbers")
    assert stat.S_ISCHR(full.stat().st_mode), "a device is written into, not replaced"


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        results_io.write(pipe, b"numbers")
        assert os.read(descriptor, 100) == b"numbers"
    finally:
        os.close(descriptor)


def test_a_link_is_followed_and_a_long_name_written(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    results_io.write(link, b"numbers")
    assert link.is_symlink() and target.read_bytes() == b"numbers"
    results_io.write(tmp_path / ("a" * 255), b"numbers")
    assert sorted(len(each.name) for each in tmp_path.iterdir()) == [4, 6, 255]

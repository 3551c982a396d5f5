"""The command as a process: help at once, errors in a line, a traceback when asked for."""

import subprocess
import sys

import pytest

BAD = ("explain", "--retention", "7")


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "sharp_compile", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["bench", "-h"]])
def test_help(arguments):
    done = command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: " in done.stdout


def test_help_loads_no_torch():
    code = "import sys, sharp_compile.tools.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_error_is_a_line_and_exit_status_2():
    done = command(*BAD)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == "error: option retention=7.0: must be a number above 0 and at most 1, to six decimals"
    assert "Traceback" not in done.stderr


def test_debug_shows_where_wherever_it_stands():
    for arguments in (["--debug", *BAD], [*BAD, "--debug"]):
        done = command(*arguments)
        assert done.returncode != 0
        assert "Traceback" in done.stderr and "sharp_compile/options.py" in done.stderr


def test_what_nobody_thought_of_is_a_line_too():
    code = """
import sys
from sharp_compile.tools import cli
sys.modules["sharp_compile.tools.cli.explain"].check_folders = lambda *paths: [][0]
sys.argv = ["sharp-compile", "explain"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: IndexError: list index out of range (--debug shows where)"
    assert "Traceback" not in done.stderr

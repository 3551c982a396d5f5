"""Stages in processes of their own: their results, their end, and what is told of those that fail."""

import os
import time

from sharp_compile.tools.check.rows import Fact, Verdict
from sharp_compile.tools.check.stage import Running, Stage


def two(name):
    yield Fact(name, os.environ["OF_THE_STAGE"])
    yield Fact("output", "quiet")
    print("this goes to no terminal")


def hangs(name):
    yield Fact(name, "before")
    time.sleep(600)


def dies(name):
    yield Fact(name, "before")
    print("last words")
    os.abort()


def run(function, seconds=60):
    running = Running(Stage("kernels", f"{__name__}:{function.__name__}", ("a name",), {"OF_THE_STAGE": "its own"}))
    try:
        return list(running.results(time.monotonic() + seconds))
    finally:
        running.close()


def test_results_arrive_and_nothing_is_printed(capfd):
    assert run(two) == [Fact("a name", "its own"), Fact("output", "quiet")]
    assert capfd.readouterr() == ("", "")
    assert "OF_THE_STAGE" not in os.environ


def test_one_that_does_not_end_is_stopped():
    start = time.monotonic()
    *before, last = run(hangs, 8)
    assert before in ([Fact("a name", "before")], [])  # [] where a busy machine has not started it by then
    assert last == Verdict("kernels", "the rest", None, "no time was left")
    assert time.monotonic() - start < 60


def test_one_that_dies_is_told():
    *before, last = run(dies)
    assert before == [Fact("a name", "before")]
    assert (last.right, last.name) == (False, "the rest")
    assert last.told.startswith("the process ended with signal SIGABRT")

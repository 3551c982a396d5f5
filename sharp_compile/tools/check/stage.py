"""A stage of the check in a process of its own, whose results arrive one by one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from sharp_compile.short_repr import brief

from .rows import Result, Verdict

_TO_END = 3
"""Seconds that a process gets to end by itself."""


@dataclass(frozen=True)
class Stage:
    """What one process runs.

    Attributes:
        name: as in ``rows.Verdict``.
        function: ``module:name`` in this package, a generator of results.
        arguments: its arguments.
        environment: variables that it finds beside those of this process.
    """

    name: str
    function: str
    arguments: tuple[Any, ...]
    environment: Mapping[str, str]


class Running:
    """A stage that has been started. ``results`` yields what it finds until it ends or is out of time."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._log: IO[bytes] = tempfile.NamedTemporaryFile(prefix="sharp-check-")  # noqa: SIM115 - until it ends
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe(duplex=False)
        arguments = there, self._log.name, stage.function, stage.arguments
        self._process = context.Process(target=_work, args=arguments)
        with _set(stage.environment):
            self._process.start()
        there.close()

    def results(self, end: float) -> Iterator[Result]:
        """Yield results until the time ``end`` (of ``time.monotonic``), then stop the stage.

        What went wrong with the process itself is the last one, a verdict.
        """
        try:
            while self._here.poll(max(0.0, end - time.monotonic())):
                yield self._here.recv()
            yield Verdict(self.stage.name, "the rest", None, "no time was left")
        except EOFError:
            self._process.join(_TO_END)
            if self._process.exitcode:
                yield Verdict(self.stage.name, "the rest", False, self._last_words())

    def close(self) -> None:
        """End the process, and what it has started, such as the workers that compile for it."""
        self._process.terminate()
        self._process.join(_TO_END)
        if self._process.is_alive() and self._process.pid is not None:
            with suppress(ProcessLookupError, AttributeError):  # no group yet; a system without groups
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        self._here.close()
        self._log.close()

    def _last_words(self) -> str:
        code = self._process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return f"the process ended with {how}" + (f": {brief(lines[-1])}" if lines else "")


def _work(connection: Connection, log: str, function: str, arguments: tuple[Any, ...]) -> None:
    """Run in the process: send what the function yields; what libraries print goes to the log."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what the process holds is given back
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    module, _, name = function.partition(":")
    from sharp_compile.tools.suppressed_logs import suppress_logs

    suppress_logs()
    generator: Callable[..., Iterator[Result]] = getattr(import_module(module, __package__), name)
    for result in generator(*arguments):
        connection.send(result)


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for as long as a process is being started, which inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

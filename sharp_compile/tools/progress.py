"""How far a command is: a bar on a terminal, lines where the output goes elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass
class Steps:
    """The steps of a command, of which ``total`` are known beforehand.

    Attributes:
        total: their number.
        show: draws the number of steps that are done, and what is going on.
    """

    total: int
    show: Callable[[int, str], None]
    done: int = 0
    what: str = ""

    def begin(self, what: str) -> None:
        """Tell what comes next."""
        self.what = what
        self.show(self.done, what)

    def advance(self, count: int = 1) -> None:
        """Tell that ``count`` steps more are done."""
        self.done += count
        self.show(self.done, self.what)

    def next(self, what: str) -> None:
        """Tell what comes next, which is a step of its own: the one before is done."""
        self.done += bool(self.what)
        self.begin(what)


@contextmanager
def progress(total: int) -> Iterator[Steps]:
    """Show on standard error how far a command is, until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Steps(total, _Lines(total).show)
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield Steps(total, lambda done, what: bar.update(task, completed=done, description=what))


class _Lines:
    """A line for each kind of step, when it first comes: repeats are not told."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.told: set[str] = {""}

    def show(self, done: int, what: str) -> None:
        if what not in self.told:
            print(f"[{done}/{self.total}] {what}", file=sys.stderr, flush=True)
        self.told.add(what)

"""A run from the request to the exit status: whatever has no answer yet is asked, with a progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sharp_compile.tools.batch import BatchError, clips
from sharp_compile.tools.batch.answer import check
from sharp_compile.tools.batch.folder import videos
from sharp_compile.tools.batch.results import Asked, Record, Results
from sharp_compile.tools.demo import DemoError

CLIPS = 24
"""How many videos are rendered where no folder is given."""

Answers = Callable[[Asked, Path, Sequence[str]], Iterable[Record]]
"""What answers a question about videos of a folder: a record for each, in any order, as soon as there is one."""


@dataclass(frozen=True)
class Request:
    """What to do: ask about the videos in ``folder``, and write to ``output``.

    Without a folder there are rendered videos for the time of the run. ``expected`` is a JSON file with the right
    answers of some videos, by their path relative to the folder.
    """

    asked: Asked
    folder: Path | None
    output: Path
    expected: Path | None


def run(request: Request, answers: Answers) -> int:
    """Ask about every video that has no record yet, and print a summary.

    Returns:
        The exit status: 0 if all videos have an answer now.
    """
    out, err = (Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True) for stderr in (False, True))
    try:
        check(request.asked)
        with _folder(request) as (folder, expected):
            names = videos(folder)
            with Results(request.output, request.asked) as results:
                earlier = len(results.records.keys() & names)
                _ask(results, [name for name in names if name not in results.records], len(names), answers, folder, err)
                records = [results.records[name] for name in names if name in results.records]
    except (BatchError, DemoError, OSError) as error:
        err.print(f"error: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        err.print(f"stopped; the same command goes on from {request.output}")
        return 130
    failed = [record for record in records if record.error is not None]
    for record in failed:
        err.print(f"failed: {_printable(record.video)}: {record.error}", style="red")
    for line in _summary(records, earlier, expected):
        out.print(line)
    out.print(f"Answers: {request.output}")
    return 1 if failed else 0


@contextmanager
def _folder(request: Request) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Yield the folder with the videos, and right answers for those of which they are known."""
    if request.folder is not None:
        yield request.folder, {} if request.expected is None else _expected(request.expected)
    else:
        with TemporaryDirectory() as folder:
            scenes = clips.render(Path(folder), CLIPS)
            yield Path(folder), clips.right_answers(scenes, request.asked.question)


def _expected(path: Path) -> dict[str, str]:
    try:
        expected = json.loads(path.read_bytes())
    except ValueError as error:
        raise BatchError(f"--expected {path}: not a file in JSON ({error})") from error
    if not isinstance(expected, dict) or not all(isinstance(answer, str) for answer in expected.values()):
        raise BatchError(f'--expected {path}: has to be {{"path of a video": "its right answer", ...}}')
    return expected


def _ask(
    results: Results, missing: Sequence[str], total: int, answers: Answers, folder: Path, console: Console
) -> None:
    """Have the missing videos answered, and keep each record as it comes.

    Raises:
        BatchError: The answers came to an end before each video had its own.
    """
    if not missing:
        return
    failed, had = 0, len(results.records)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_interactive)
    with bar as progress:
        task = progress.add_task("loading", total=total, completed=total - len(missing))
        for record in answers(results.asked, folder, missing):
            results.add(record)
            failed += record.error is not None
            progress.update(
                task,
                description="videos" if failed == 0 else f"videos, {failed} failed",
                completed=total - len(missing) + len(results.records) - had,
            )
    if left := [name for name in missing if name not in results.records]:
        raise BatchError(f"no answer came for {len(left)} videos, of which {_printable(left[0])} is one: run it again")


def _summary(records: Sequence[Record], earlier: int, expected: Mapping[str, str]) -> Iterator[str]:
    answered = [record for record in records if record.answer is not None]
    yield f"{len(records)} videos: {len(answered)} answered, {len(records) - len(answered)} failed" + (
        f" ({earlier} of them earlier)" if earlier else ""
    )
    visual, kept = (sum(getattr(record, f"{what}_tokens") or 0 for record in answered) for what in ("visual", "kept"))
    if visual:
        yield f"visual tokens: {kept:,} of {visual:,} kept"
    reasons = [record.unpruned for record in answered if record.unpruned is not None]
    for reason in dict.fromkeys(reasons):
        yield f"{reasons.count(reason)} ran unpruned: {reason}"
    known = [record for record in records if record.video in expected]
    if known:
        right = sum(_same(record.answer, expected[record.video]) for record in known)
        yield f"right: {right} of {len(known)} ({right / len(known):.1%})"


def _printable(name: str) -> str:
    """Return a name in one line, whatever is in it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _same(answer: str | None, expected: str) -> bool:
    return answer is not None and answer.strip().casefold() == expected.strip().casefold()

"""The file of answers: a line for each video, written at once or not at all, and never a second one.

It is all that a run leaves behind, and all that the next one needs in order to go on.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sharp_compile.tools.batch import BatchError

_BEGINNING = b'{"video": "'
"""How every line begins, so that half of one can be told from the end of another program's file."""


@dataclass(frozen=True)
class Asked:
    """What every video is asked, and of which model: the same for all records of a file.

    Attributes:
        model: the folder of a checkpoint, or ``answer.TRAINED``.
        question: in words.
        frames: how many are taken from a video.
        retention: like the next three, an option of the backend.
        layer: see ``retention``.
        selector: see ``retention``.
        inner: see ``retention``.
        max_new_tokens: the most tokens that an answer has.
    """

    model: str
    question: str
    frames: int
    retention: float
    layer: int
    selector: str
    inner: str
    max_new_tokens: int


@dataclass(frozen=True)
class Record:
    """What became of one video: an answer or an error.

    Attributes:
        video: its path relative to the folder, with slashes.
        answer: what the model said; None where there was an error.
        error: what was wrong, in one line; None where there is an answer.
        visual_tokens: how many the video was; None where there was an error, likewise below.
        kept_tokens: how many of them the last decoder layers had.
        unpruned: why the model ran unpruned, if it did and wasn't asked to.
    """

    video: str
    answer: str | None = None
    error: str | None = None
    visual_tokens: int | None = None
    kept_tokens: int | None = None
    unpruned: str | None = None


class Results:
    """An open file of answers, which no other run can open meanwhile.

    Attributes:
        asked: what all of them were asked.
        records: those in the file, by their video.
    """

    def __init__(self, path: Path, asked: Asked) -> None:
        """Open or make a file, and read what is in it.

        Raises:
            BatchError: Another run has it open, or it holds anything but records of the same question.
            OSError: It can't be written.
        """
        self.records: dict[str, Record] = {}
        self._path, self.asked = path, asked
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            self._lock()
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def add(self, record: Record) -> None:
        """Append the record of a video, unless there is one: whoever answers may answer twice.

        When this returns, the record is on the disk.

        Raises:
            OSError: It can't be written; the file is as it was before.
        """
        if record.video in self.records:
            return
        line = json.dumps({**asdict(record), "asked": asdict(self.asked)}).encode() + b"\n"
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            left = line
            while left:  # a full disk takes a part first, and fails then
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, end)
            raise
        self.records[record.video] = record

    def _lock(self) -> None:
        """The system lets go of it when this process ends, however it does."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BatchError(f"{self._path}: another run is writing this file") from error

    def _read(self) -> None:
        with os.fdopen(os.dup(self._file), "rb") as file:
            *lines, torn = file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            self._take(line, f"{self._path}, line {number}")
        if torn:
            # A machine that lost its power may have written a part of the last line: that video is asked again.
            if not torn.startswith(_BEGINNING) and not _BEGINNING.startswith(torn):
                raise BatchError(f"{self._path}: not a file of answers; name another one")
            os.ftruncate(self._file, sum(len(line) + 1 for line in lines))

    def _take(self, line: bytes, place: str) -> None:
        try:
            content = json.loads(line)
            asked = Asked(**content.pop("asked"))
            record = Record(**content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BatchError(f"{place}: not an answer of this program; name another file") from error
        for name, value in asdict(asked).items():
            if value != (now := getattr(self.asked, name)):
                raise BatchError(f"{place}: asked with {name} {value!r}, now it is {now!r}; name another file")
        if record.video in self.records:
            raise BatchError(f"{place}: a second answer for {record.video}; delete one of them")
        self.records[record.video] = record

"""The videos of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from sharp_compile.tools.batch import BatchError

SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
"""How the names of videos end, in small or capital letters."""


def videos(folder: Path) -> list[str]:
    """Return the paths of all videos in a folder and the folders in it, relative to it, in order.

    A video is what has the name of one: whether it can be read turns out later. Hidden files and folders are left
    out, and links to folders are not followed.

    Raises:
        BatchError: There is no such folder, or no video in it.
        OSError: A folder in it can't be listed.
    """
    if not folder.is_dir():
        raise BatchError(f"{folder}: there is no such folder")

    def fail(error: OSError) -> None:
        raise error

    found = []
    for at, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(at, name).relative_to(folder).as_posix()
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise BatchError(f"{folder}: there are no videos in it, which is to say files named *{', *'.join(SUFFIXES)}")
    return sorted(found)

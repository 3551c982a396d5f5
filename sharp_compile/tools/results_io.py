"""The JSON file of a run: the rows of its table, and what machine and software they come from."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers depend on."""
    packages = ("sharp-compile", "torch", "transformers", "torchvision", "av")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from its source folder
            found[package] = "not installed"
    return found


def machine() -> str:
    """Return what the numbers were measured on, in words: processor, threads, accelerator, system, torch."""
    parts = [f"{_processor()}, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [f"{platform.system()} {platform.machine()}", f"torch {torch.__version__}"]
    return "; ".join(parts)


def write_json(path: Path, rows: Sequence[Any], **more: Any) -> None:
    """Write the rows, which are dataclass instances, and more under its own names, all or nothing."""
    content = {"versions": versions(), "machine": machine(), "rows": [asdict(row) for row in rows], **more}
    write(path, json.dumps(content, indent=2).encode() + b"\n")


def write(path: Path, content: bytes) -> None:
    """Write a file so that there is the old one or the new one at any time, never half of one.

    A link is followed. What is no file (a device, a pipe) is written into.

    Raises:
        OSError: with the name of the file.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _replace(path: Path, content: bytes) -> None:
    # The name may be as long as names can be: the temporary one does not contain it.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".sharp-compile.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        # A temporary file is its owner's alone; this one gets the rights that any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _processor() -> str:
    """Return the processor's name, as Linux knows it or else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names: Mapping[str, str] = dict(
        (key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)
    )
    return names.get("model name") or platform.processor() or platform.machine()

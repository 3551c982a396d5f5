"""Checks what the built distributions in a folder hold: all that the package needs, and nothing else."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = [
    "sharp_compile/py.typed",
    "sharp_compile/tools/html_report/page.html.jinja",
    "sharp_compile/tools/demo/clip.mp4",
    "sharp_compile/tools/evaluation/models/README.md",
    "sharp_compile/tools/evaluation/models/seed-1/model.safetensors",
    "sharp_compile/tools/evaluation/models/seed-2/model.safetensors",
]
# In the wheel, the folders `passes` and `kernels` have their installed names.
IN_WHEEL = ["sharp_compile/passes/pipeline.py", "sharp_compile/kernels/greedy_cosine_dedup/triton.py"]
IN_SOURCES = ["passes/pipeline.py", "kernels/greedy_cosine_dedup/triton.py", "pyproject.toml", "README.md", "LICENSE"]


def main(folder: Path) -> None:
    """Ends with a message for the first distribution that is not as it should be."""
    (wheel,), (sources,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    check(wheel, names, NEEDED + IN_WHEEL)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if tops != {"sharp_compile"}:
        sys.exit(f"{wheel}: installs {sorted(tops)}, not sharp_compile alone")
    with tarfile.open(sources) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    check(sources, names, NEEDED + IN_SOURCES)
    if tests := [name for name in names if name.startswith("tests/")]:
        sys.exit(f"{sources}: holds a part of the tests, such as {tests[0]}")


def check(path: Path, names: list[str], needed: list[str]) -> None:
    """Ends with a message if files are missing, or there are files that a run left behind."""
    if missing := sorted(set(needed) - set(names)):
        sys.exit(f"{path}: lacks {', '.join(missing)}")
    if left := [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so"))]:
        sys.exit(f"{path}: holds {left[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

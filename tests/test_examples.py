"""The scripts in `examples/` are on their page and can be started; what they do is tested beside what they use."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_the_page_has_every_script():
    listed = re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "docs" / "examples.md").read_text(), re.MULTILINE)
    assert sorted(listed) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_tells_its_arguments(script):
    done = subprocess.run([sys.executable, ROOT / "examples" / script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_the_graphs_are_drawn(tmp_path):
    script = ROOT / "examples" / "draw_graphs.py"
    subprocess.run([sys.executable, script, tmp_path / "graphs.png"], check=True, capture_output=True)
    assert (tmp_path / "graphs.png").read_bytes().startswith(b"\x89PNG")

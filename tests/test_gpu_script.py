"""`.ci/gpu`, which takes a clone to a machine with a GPU: here it has a minute, and the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(sys.platform == "win32", reason="a script for bash")
def test_a_minute_on_this_cpu(tmp_path):
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"OUT": str(tmp_path), "MINUTES": "1", "PATH": binaries}
    done = subprocess.run(
        [ROOT / ".ci" / "gpu", "--device", "cpu"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = (tmp_path / "check.txt").read_text()
    assert "Traceback" not in told
    assert "All right." in told
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["facts"]["python"]
    verdicts = content["verdicts"]
    assert verdicts
    assert all(each["right"] or each["told"] == "no time was left" for each in verdicts)

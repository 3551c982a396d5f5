"""The training script makes a model that loads and is asked as those of the package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.score import grade

SCRIPT = Path(__file__).parents[3] / "examples" / "train_video_model.py"


@pytest.mark.torchvision
def test_a_few_steps(tmp_path):
    arguments = [sys.executable, SCRIPT, tmp_path / "model", "--seed", "3", "--share", "0.001"]
    subprocess.run(arguments, check=True, capture_output=True)
    model, tokenizer = load(tmp_path / "model")
    assert len(grade(model, tokenizer, hold_out("sparse", 3, 0), False).right) == 3
    history = json.loads((tmp_path / "model" / "training.json").read_text())
    assert history["seed"] == 3
    assert {stage["steps"] for stage in history["stages"]} == {1}  # each stage has at least one

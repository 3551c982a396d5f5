"""torchvision beside a torch that its compiled part doesn't fit, in a fresh process each time."""

import subprocess
import sys

import pytest


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.torchvision
@pytest.mark.parametrize(
    "before",
    [
        "",
        # What failed earlier, here and in transformers' lazy modules, doesn't stay broken.
        "try: import torchvision\nexcept RuntimeError: pass",
        "try: from transformers import LlavaOnevisionVideoProcessor\nexcept ImportError: pass",
    ],
    ids=["first", "after a failed import", "after transformers failed"],
)
def test_transformers_gets_its_video_processors(before):
    program = f"""
{before}
import sharp_compile
import torch, torchvision
from torchvision.transforms.v2 import functional
from transformers import LlavaOnevisionVideoProcessor, Qwen2VLVideoProcessor
video = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)
print(functional.resize(video, [8, 8]).shape)
print(LlavaOnevisionVideoProcessor()(video, return_tensors="pt").pixel_values_videos.shape)
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["torch.Size([2, 3, 8, 8])", "torch.Size([1, 2, 3, 384, 384])"]


def test_another_failure_is_not_hidden(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('something else')")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import sharp_compile, torchvision
"""
    result = run(program)
    assert result.returncode != 0
    assert "RuntimeError: something else" in result.stderr

"""Ask a pipeline of transformers about videos, its model pruned.

    python examples/answer_with_pipeline.py
    python examples/answer_with_pipeline.py --model FOLDER --video FILE --question "What happens here?"

A pipeline calls `generate` of its model, so compiling that model is all there is to do. transformers has no pipeline
for videos by name: `image-text-to-text` takes them too. By default the small trained model that comes with the package
answers one question in each of its three worlds. Needs the extra `video`: processors of transformers want torchvision.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import sharp_compile
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.scenes import WORLDS
from sharp_compile.tools.suppressed_logs import suppress_logs


def main(arguments: list[str] | None = None) -> None:
    """Ask, and print the answers with what was kept for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODELS / "seed-1", help="a folder with a checkpoint")
    parser.add_argument("--video", type=Path, help="a video file; without one, rendered videos")
    parser.add_argument("--question", default="What happens here?", help="about the video file")
    parser.add_argument("--retention", type=float, default=0.1, help="the share of visual tokens that is kept")
    parser.add_argument("--inner", default="eager", help='what compiles the pruned graph; "inductor" for speed')
    given = parser.parse_args(arguments)
    suppress_logs()
    pipe: Any = transformers.pipeline("image-text-to-text", model=str(given.model), dtype=torch.float32)
    sharp_compile.compile(pipe.model, retention=given.retention, inner=given.inner)

    asked = rendered() if given.video is None else [(str(given.video), given.question, "not known")]
    for video, question, right in asked:
        content = [{"type": "video", "video": video}, {"type": "text", "text": question}]
        (said,) = pipe(
            text=[{"role": "user", "content": content}],
            return_full_text=False,
            max_new_tokens=20,
            generate_kwargs={"do_sample": False},
        )
        print(f"{question} {said['generated_text'].strip()} (right: {right})")
    for report in sharp_compile.reports():
        if report.pruned:
            print(f"{report.sequence_length} -> {report.pruned_length} tokens after layer {report.layer}")


def rendered() -> Iterator[tuple[Any, str, str]]:
    """A video of each world, a question about it, and its answer."""
    for world in WORLDS:
        exam = hold_out(world, 1, seed=1)
        yield exam.frames[0], " ".join(exam.questions[0].words), exam.questions[0].answer


if __name__ == "__main__":
    main()

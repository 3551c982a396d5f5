"""Export a pruned model as programs, and answer questions by them where transformers is not loaded.

    python examples/export_program.py

The pruned prefill of the small trained model that comes with the package, and a step of decoding on its caches, become
two files: `prefill.pt2` and `step.pt2`, compiled ahead of time by AOTInductor. A second process, which imports torch
alone, loads them and writes answers in a loop. They are printed beside those of the compiled model. Compiling
takes a minute or two; with `--format export` the files hold the programs as they are, which torch interprets.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENS = 3  # of an answer: the model was trained on one word, and says nothing of worth after it
NAMES = ("prefill", "step")


def main(arguments: list[str] | None = None) -> None:
    """Export, answer in another process, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retention", type=float, default=0.1, help="the share of visual tokens that is kept")
    parser.add_argument("--questions", type=int, default=3, help="how many, each on a video of its own")
    parser.add_argument("--format", choices=("aoti", "export"), default="aoti", help="what the files hold")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary one if not told")
    parser.add_argument("--answer", action="store_true", help="be the second process: answer what is in the folder")
    given = parser.parse_args(arguments)
    if given.answer:
        answer(given.folder, given.format)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        compare(folder, given)


def compare(folder: Path, given: argparse.Namespace) -> None:
    """Write the programs and the prompts, have them answered, and print the answers beside the compiled model's."""
    import sharp_compile
    from sharp_compile.tools.evaluation import MODELS
    from sharp_compile.tools.evaluation.dataset import hold_out
    from sharp_compile.tools.evaluation.prompts import pixel_values, prompt_ids
    from sharp_compile.tools.evaluation.run import load
    from sharp_compile.tools.suppressed_logs import suppress_logs

    suppress_logs()
    model, tokenizer = load(MODELS / "seed-1")
    exam = hold_out("sparse", given.questions, seed=1)
    prompts = []
    for frames, question in zip(exam.frames, exam.questions, strict=True):
        ids = prompt_ids(tokenizer, [question])
        video = pixel_values(frames[None])
        prompts.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": video})
    torch.save(prompts, folder / "prompts.pt")

    prefill = sharp_compile.export(model, retention=given.retention, **prompts[0])
    step = sharp_compile.export_decode(model, prefill)
    for name, program in zip(NAMES, (prefill, step), strict=True):
        if given.format == "aoti":
            torch._inductor.aoti_compile_and_package(program, package_path=str(folder / f"{name}.pt2"))
        else:
            torch.export.save(program, folder / f"{name}.pt2")
        print(f"{name}.pt2: {(folder / f'{name}.pt2').stat().st_size / 1e6:.1f} MB")

    command = [sys.executable, __file__, "--answer", "--folder", folder, "--format", given.format]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    said = torch.load(folder / "answers.pt")

    sharp_compile.compile(model, retention=given.retention, inner="eager")
    for prompt, question, tokens in zip(prompts, exam.questions, said, strict=True):
        length = prompt["input_ids"].shape[1]
        # It ends where the model does, which the loop of the second process knows nothing of.
        output = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[:, length:]
        word, compiled = (tokenizer.decode(each[0, :1]) for each in (tokens, output))
        same = "the same" if tokens[:, : output.shape[1]].equal(output) else "other"
        print(
            f"{' '.join(question.words)} program: {word}, compiled: {compiled}, right: {question.answer}; {same} tokens"
        )


def answer(folder: Path, kind: str) -> None:
    """Answer the prompts of a folder by its programs: this needs torch alone."""
    prefill, step = (load_program(folder / f"{name}.pt2", kind) for name in NAMES)
    answers = []
    with torch.no_grad():
        for prompt in torch.load(folder / "prompts.pt"):
            state, tokens = dict(prefill(**prompt)), []
            for number in range(TOKENS):
                tokens.append(state.pop("logits")[:, -1:].argmax(-1))
                if number + 1 < TOKENS:
                    state = dict(step(input_ids=tokens[-1], **state))
            answers.append(torch.cat(tokens, 1))
    torch.save(answers, folder / "answers.pt")
    loaded = [name for name in ("transformers", "sharp_compile") if name in sys.modules]
    print(
        f"answered {len(answers)} questions; loaded of transformers and sharp_compile: {', '.join(loaded) or 'neither'}"
    )


def load_program(path: Path, kind: str) -> Callable[..., dict[str, Tensor]]:
    """Return a program as a function of named tensors."""
    if kind == "aoti":
        compiled: Any = torch._inductor.aoti_load_package(str(path))
        return compiled
    return torch.export.load(path).module()


if __name__ == "__main__":
    main()

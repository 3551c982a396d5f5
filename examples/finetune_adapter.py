"""Fine-tune a LoRA adapter with pruning on: every step is as short as an answer will be.

    python examples/finetune_adapter.py

The small trained model that comes with the package is taught to say "left" for right and "right" for left. That takes
longer than this; what is to be seen in a few steps is that the loss falls. The base model stays as it is; gradients
reach the adapters of the layers before the cut and after it, through the tokens that are kept. With labels, the loss
is that of the kept positions. Needs the extra `examples` (PEFT).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sharp_compile
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import Exam, hold_out
from sharp_compile.tools.evaluation.prompts import pixel_values, prompt_ids
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.suppressed_logs import suppress_logs

MIRRORED = {"top-left": "top-right", "bottom-left": "bottom-right"}
MIRRORED |= {right: left for left, right in MIRRORED.items()}
BATCH = 8


def main(arguments: list[str] | None = None) -> None:
    """Train, and print the loss and what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help=f"of {BATCH} videos each")
    parser.add_argument("--retention", type=float, default=0.1, help="the share of visual tokens that is kept")
    parser.add_argument("--inner", default="eager", help='what compiles the pruned graph; "inductor" for speed')
    given = parser.parse_args(arguments)
    suppress_logs()
    import peft

    torch.manual_seed(0)
    base, tokenizer = load(MODELS / "seed-1")
    adapters = peft.LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")
    model: Any = peft.get_peft_model(base, adapters)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sharp_compile.compile(model, retention=given.retention, inner=given.inner)

    taught = where_questions(given.steps * BATCH, seed=2)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for step in range(given.steps):
        loss = model(**prompts(tokenizer, taught, slice(step * BATCH, (step + 1) * BATCH))).loss
        loss.backward()
        reached = sum(bool(parameter.grad.any()) for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0 or step == given.steps - 1:
            print(f"step {step}: loss {loss.item():.2f}, gradients in {reached} of {len(trained)} adapter matrices")

    changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    print(f"changed: {len(changed)} adapter matrices, {sum('lora_' not in name for name in changed)} others")
    report = next(report for report in sharp_compile.reports() if report.pruned)
    print(f"{report.sequence_length} -> {report.pruned_length} tokens after layer {report.layer}")


def where_questions(count: int, seed: int) -> Exam:
    """Questions after the place of an object, each on a video of its own."""
    exam = hold_out("crowded", 6 * count, seed)
    chosen = [number for number, question in enumerate(exam.questions) if question.kind == "where"]
    return Exam(exam.world, exam.frames[chosen], exam.scenes, [exam.questions[number] for number in chosen])


def prompts(tokenizer: Any, exam: Exam, rows: slice) -> dict[str, Tensor]:
    """Prompts with their mirrored answers after them, which alone are labels."""
    words = [MIRRORED[question.answer] for question in exam.questions[rows]]
    answers = torch.tensor(tokenizer.convert_tokens_to_ids(words))
    ids = torch.cat([prompt_ids(tokenizer, exam.questions[rows]), answers[:, None]], dim=1)
    videos = pixel_values(np.ascontiguousarray(exam.frames[rows]))
    labels = torch.full_like(ids, -100)
    labels[:, -1] = answers
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": videos, "labels": labels}


if __name__ == "__main__":
    main()

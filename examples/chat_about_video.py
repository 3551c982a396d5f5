"""Chat about a video on one cache: the video comes in the first turn, later turns are text only.

    python examples/chat_about_video.py

Pruning happens in the first turn. What the cache then holds is short after the cut, and stays so: each later turn adds
its own tokens to all layers. The model is the small trained one that comes with the package. It was trained on one
question to a video: what it says in later turns is shown beside what the full model says, and measures nothing.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import sharp_compile
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import Exam, hold_out
from sharp_compile.tools.evaluation.prompts import pixel_values, prompt_ids
from sharp_compile.tools.evaluation.questions import questions
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.suppressed_logs import suppress_logs

TURNS = 3


def main(arguments: list[str] | None = None) -> None:
    """Chat with the full and the pruned model, and print what each layer's cache holds after each turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retention", type=float, default=0.1, help="the share of visual tokens that is kept")
    parser.add_argument("--inner", default="eager", help='what compiles the pruned graph; "inductor" for speed')
    given = parser.parse_args(arguments)
    suppress_logs()

    model, tokenizer = load(MODELS / "seed-1")
    exam = hold_out("sparse", 1, seed=1)
    for name in ("full", "pruned"):
        if name == "pruned":
            sharp_compile.compile(model, retention=given.retention, inner=given.inner)
        print(f"\n{name} model")
        for question, answer, lengths in chat(model, tokenizer, exam):
            print(f"  {question} {answer}\n    tokens in the cache, layer by layer: {lengths}")


def chat(model: Any, tokenizer: Any, exam: Exam) -> list[tuple[str, str, list[int]]]:
    """The questions, the answers, and the number of tokens that each layer's cache holds after them."""
    cache, said = None, []
    ids = prompt_ids(tokenizer, exam.questions)
    later = [each for each in questions(exam.scenes[0]) if each != exam.questions[0]]
    for turn, question in enumerate([exam.questions[0], *later[: TURNS - 1]]):
        words = " ".join(question.words)
        if turn > 0:
            more = tokenizer(words, return_tensors="pt", add_special_tokens=False).input_ids
            ids = torch.cat([ids, more], dim=1)
        video = {"pixel_values_videos": pixel_values(exam.frames)} if turn == 0 else {}
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **video,
            past_key_values=cache,
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
        )
        answer = tokenizer.decode(output.sequences[0, ids.shape[1] :])
        ids, cache = output.sequences, output.past_key_values
        said.append((words, answer, [layer.keys.shape[-2] for layer in cache.layers]))
    return said


if __name__ == "__main__":
    main()

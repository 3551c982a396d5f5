"""Quantise a model to int8 with torchao, then prune it: smaller weights and fewer tokens.

    python examples/quantise_and_prune.py

The linear layers of the small trained model that comes with the package get weights of int8 with a scale for each row.
The quantised weights are tensors of a class of their own, which says what a linear layer does; the passes look at what
it does inside. Prints the size before and after, and the answers of the quantised model, full and pruned. Needs the
extra `examples` (torchao).
"""

from __future__ import annotations

import argparse
import io

import torch

from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.score import grade, pruned
from sharp_compile.tools.suppressed_logs import suppress_logs


def main(arguments: list[str] | None = None) -> None:
    """Quantise, prune, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12, help="how many, each on a video of its own")
    parser.add_argument("--retention", type=float, default=0.1, help="the share of visual tokens that is kept")
    parser.add_argument("--inner", default="inductor", help='what compiles the pruned graph; "eager" begins sooner')
    given = parser.parse_args(arguments)
    suppress_logs()
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, tokenizer = load(MODELS / "seed-1")
    print(f"float32: {megabytes(model):.2f} MB")
    quantize_(model, Int8WeightOnlyConfig())
    print(f"int8 in linear layers: {megabytes(model):.2f} MB")

    exam = hold_out("crowded", given.questions, seed=1)
    full = grade(model, tokenizer, exam, is_pruned=False)
    short = grade(pruned(model, retention=given.retention, inner=given.inner), tokenizer, exam, is_pruned=True)
    for question, one, other in zip(exam.questions, full.answers, short.answers, strict=True):
        print(f"{' '.join(question.words)} full: {one}, pruned: {other}, right: {question.answer}")
    agreed = sum(one == other for one, other in zip(full.answers, short.answers, strict=True))
    print(f"the same answer to {agreed} of {given.questions} questions, with {given.retention:.0%} of the tokens")


def megabytes(model: torch.nn.Module) -> float:
    """The size of what is saved of a model."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1e6


if __name__ == "__main__":
    main()

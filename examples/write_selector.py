"""Write a rule of your own that says which visual tokens are kept, and compare it with others.

    python examples/write_selector.py

The rule here is motion: a token is worth as much as it differs from the one at its place in the frame before. It asks
for no attention at all, and not for the question either: good for what appears, moves or goes, blind to what stays.
The small trained model that comes with the package answers questions with what each rule keeps.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import sharp_compile
from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.scenes import WORLDS
from sharp_compile.tools.evaluation.score import grade, pruned
from sharp_compile.tools.suppressed_logs import suppress_logs


def motion(ctx: sharp_compile.Context) -> Tensor:
    """How much each token differs from the one at its place in the frame before; 1 in the first frame.

    For frames of one size, one right after the other.
    """
    position = torch.arange(ctx.frame.shape[1], device=ctx.frame.device)
    # The first token of each token's frame, and how far a frame is from the next.
    begins = (ctx.frame != ctx.frame.roll(1, dims=1)) & ctx.is_visual
    in_frame = position - position.where(begins, 0).cummax(1).values
    size = in_frame.where(ctx.is_visual, 0).amax(1, keepdim=True) + 1
    before = (position - size).clamp_min(0)
    hidden = ctx.hidden.float()
    earlier = hidden.gather(1, before[..., None].expand_as(hidden))
    there = ctx.is_visual.gather(1, before) & (ctx.frame > 0)
    return 1 - cosine_similarity(hidden, earlier, dim=-1).where(there, 0)


def main(arguments: list[str] | None = None) -> None:
    """Ask the same questions with each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=40, help="in each world, each on a video of its own")
    parser.add_argument("--retention", type=float, default=0.05, help="the share of visual tokens that is kept")
    parser.add_argument("--layer", type=int, default=0, help="after which the others are dropped")
    parser.add_argument("--world", choices=WORLDS, action="append", help="what videos; all by default, may be repeated")
    given = parser.parse_args(arguments)
    suppress_logs()

    model, tokenizer = load(MODELS / "seed-1")
    exams = [hold_out(world, given.questions, seed=1) for world in given.world or WORLDS]
    print(f"right answers in percent, with {given.retention:.0%} of the tokens after layer {given.layer}")
    print("rule".ljust(10), *(exam.world.rjust(8) for exam in exams))
    for selector in (motion, "sharp", "random"):
        # Inductor gives the same answers, and takes longer than they do.
        model_of_rule = pruned(model, selector=selector, retention=given.retention, layer=given.layer, inner="eager")
        shares = [grade(model_of_rule, tokenizer, exam, is_pruned=True).right.mean() for exam in exams]
        name = selector if isinstance(selector, str) else selector.__name__
        print(name.ljust(10), *(f"{share:8.0%}" for share in shares))


if __name__ == "__main__":
    main()

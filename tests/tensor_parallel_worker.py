"""What each process of `tests/test_tensor_parallel.py` does: loads a model, alone or as a rank, and makes calls.

    torchrun --standalone --nproc_per_node 2 -m tests.tensor_parallel_worker FOLDER

FOLDER holds the model and ``calls.json``; rank r writes ``rank{r}.pt`` there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import distributed, nn
from transformers.distributed import DistributedConfig

import sharp_compile
from tests.architectures import ALL_ARCHITECTURES
from tests.support import generate
from tests.test_equivalence import ManyOptions


def sharpest_head(ctx: sharp_compile.selectors.Context) -> torch.Tensor:
    """A rule that no mean over heads can stand for: what the most decided head attends to, by its own keys."""
    attention = ctx.attention(ctx.last)[:, :, 0]
    decided = attention.amax(-1, keepdim=True)
    length = ctx.key.float().norm(dim=-1) + ctx.key_unrotated.float().norm(dim=-1)
    return (attention * decided.softmax(1) * length).amax(1)


def own_heads(ctx: sharp_compile.selectors.Context) -> torch.Tensor:
    """FastV by the heads of this rank alone: what each rank would go by if it knew no others."""
    return ctx.attention(ctx.last).chunk(distributed.get_world_size(), 1)[distributed.get_rank()].mean(1)[:, 0]


FUNCTIONS = {function.__name__: function for function in (sharpest_head, own_heads)}


def load(folder: Path, **options: Any) -> nn.Module:
    """The model in a folder."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, **options).eval()
    with torch.no_grad():
        model(**ALL_ARCHITECTURES[config.model_type].inputs(model))
    return model


def run(model: nn.Module, calls: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What becomes of each call, with each of its options one after the other.

    A call has the keyword arguments of `Architecture.inputs`, ``options`` and ``generate``. One without options goes
    on with the compiled model, and the options, of the one before.
    """
    architecture = ALL_ARCHITECTURES[model.config.model_type]
    told = []
    for call in calls:
        if "options" in call:
            torch._dynamo.reset()
            sharp_compile.reset()
            options = [case | {"selector": _selector(case)} for case in call["options"]]
            backend = ManyOptions(options)
            model.compile(backend=backend)
        inputs = architecture.inputs(model, **call["inputs"])
        told.append([])
        for backend.chosen, _ in enumerate(options):
            for report in sharp_compile.reports():
                report.kept = None
            with torch.no_grad():
                result = generate(model, inputs) if call.get("generate") else model(**inputs)
            reports = [report for report in backend.reports() if report.kept is not None]
            told[-1].append(
                {
                    "kept": [report.kept for report in reports],
                    "scores": [report.scores for report in reports],
                    "hoisted": [report.hoisted for report in reports],
                    "why not": [report.reason for report in backend.reports() if not report.pruned],
                    "logits": torch.stack(result.logits, 1) if call.get("generate") else result.logits,
                    "tokens": result.sequences if call.get("generate") else None,
                }
            )
    return told


def _selector(case: dict[str, Any]) -> Any:
    name = case.get("selector", "sharp")
    return FUNCTIONS.get(name, name)


def main() -> None:
    """One rank."""
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    model = load(folder, distributed_config=DistributedConfig(tp_plan="auto"))
    with torch._dynamo.config.patch(recompile_limit=64):
        told = run(model, json.loads((folder / "calls.json").read_text()))
    torch.save(told, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

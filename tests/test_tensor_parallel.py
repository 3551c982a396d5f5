"""Tensor parallelism: several processes, each with its own attention heads, keep and say what one process does.

The processes are started by torchrun, as users start them, and talk by gloo. The same calls are made here, by a model
that is in one piece.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tensor_parallel_worker as worker
from tests.architectures import shared_model
from tests.support import TOLERANCE

pytest.importorskip("accelerate", reason="transformers loads shards with it")

ROOT = Path(__file__).parents[1]
ONE_ROW = {"frames": 8}
# Left-padded, and of another length.
PADDED = {"frames": 6, "batch": 2, "pad": [0, 3]}

RULES = [
    {"selector": "sharp", "retention": 0.3},
    {"selector": "fastv", "retention": 0.3},
    {"selector": "visiondrop", "retention": 0.3},
    {"selector": "sharpest_head", "retention": 0.3},
]
FURTHER = [
    {"selector": "sharp", "retention": 0.3, "dedup": "keys", "debias": {"profile": "rotary", "form": "ratio"}},
    {"selector": "sharp", "retention": 0.3, "segment": {"scope": "scores", "count": 2, "tokens_per_frame": 4}},
    {"selector": "sharp", "retention": 0.3, "segment": {"scope": "forward", "frames": 2, "tokens_per_frame": 4}},
    {"selector": "sharp", "retention": 1.0},
    {"selector": "fastv", "retention": 0.3, "hoist": False},
    {"selector": "pyramiddrop", "stages": [(0, 0.5), (1, 0.25)]},
    *({"selector": name, "retention": 0.3} for name in ("feather", "sparsevlm", "framefusion", "diversity")),
    *({"selector": name, "retention": 0.3} for name in ("uniform", "random")),
]
pytestmark = pytest.mark.usefixtures("room_for_many_graphs")


def in_ranks(folder, ranks, calls):
    """What each rank is told of the calls."""
    (folder / "calls.json").write_text(json.dumps(calls))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [sys.executable, *command, "-m", worker.__name__, folder],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


def compare(folder, name, ranks, calls, **sizes):
    """Makes the calls in `ranks` processes and in this one; all must keep the same tokens and say the same."""
    shared_model(name, **{"layers": 3} | sizes).save_pretrained(folder)
    of_ranks = in_ranks(folder, ranks, calls)
    alone = worker.run(worker.load(folder), calls)
    for each in of_ranks:
        for call, (ours, theirs) in enumerate(zip(each, alone, strict=True)):
            for case, (our, their) in enumerate(zip(ours, theirs, strict=True)):
                place = f"call {call}, case {case}"
                assert len(our["kept"]) == len(their["kept"]) == 1, (place, our["why not"])
                assert our["kept"][0].tolist() == their["kept"][0].tolist(), place
                assert our["hoisted"] == their["hoisted"], place
                torch.testing.assert_close(our["logits"], their["logits"], **TOLERANCE, msg=place)
                if their["tokens"] is not None:
                    assert our["tokens"].tolist() == their["tokens"].tolist(), place
    return alone


def test_ranks_keep_what_one_process_keeps(tmp_path):
    calls = [{"inputs": ONE_ROW, "options": RULES}, {"inputs": PADDED}]
    compare(tmp_path, "llava_onevision", 2, calls)


@pytest.mark.slow
def test_every_rule(tmp_path):
    calls = [{"inputs": ONE_ROW, "options": FURTHER}, {"inputs": PADDED}]
    compare(tmp_path, "llava_onevision", 2, calls)


@pytest.mark.slow
def test_generate_in_linked_graphs(tmp_path):
    """In a bare forward call, and so in its generate, Qwen2-VL decodes in another graph than it injects in."""
    forward = [{"inputs": ONE_ROW, "options": RULES[:2]}, {"inputs": PADDED}]
    words = [{"inputs": PADDED, "options": RULES[:1], "generate": True}, {"inputs": ONE_ROW, "generate": True}]
    compare(tmp_path, "qwen2_vl", 2, [*forward, *words])


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_generate_in_four_ranks(tmp_path, inner):
    options = [rule | {"inner": inner} for rule in RULES]
    calls = [
        {"inputs": PADDED, "options": options[:1], "generate": True},
        {"inputs": ONE_ROW, "generate": True},
        {"inputs": PADDED, "options": options[1:]},
        {"inputs": ONE_ROW},
    ]
    compare(tmp_path, "llava_onevision", 4, calls, heads=8, kv_heads=4)

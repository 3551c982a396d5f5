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

from tests import oracle
from tests import tensor_parallel_worker as worker
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.support import TOLERANCE, assert_same_logits, forward

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


def sharpest_head(tokens, counts):
    """The rule of the worker, once more."""
    state = tokens.state()
    attention = state.weights()[:, :, -1]
    length = state.key.norm(dim=-1) + state.unrotated.norm(dim=-1)
    return (attention * attention.amax(-1, keepdim=True).softmax(1) * length).amax(1)


def test_ranks_keep_what_the_whole_model_keeps(tmp_path):
    """Whatever a rule makes of the heads, and whatever a rank's own heads would choose."""
    model = shared_model("llava_onevision", layers=2)
    model.save_pretrained(tmp_path)
    inputs = ALL_ARCHITECTURES["llava_onevision"].inputs(model, **PADDED)
    cut = {"retention": 0.3, "layer": 0}
    chosen = {"sharp": "sharp", "sharpest_head": sharpest_head}
    options = [cut | {"selector": name} for name in (*chosen, "own_heads")]
    of_ranks = in_ranks(tmp_path, 2, [{"inputs": PADDED, "options": options}])
    for case, selector in enumerate(chosen.values()):
        with oracle.prune(model, **cut, selector=selector) as run:
            logits = forward(model, inputs).logits
        for told in of_ranks:
            ours = told[0][case]
            assert ours["hoisted"] == [True], ours["why not"]
            assert ours["kept"][0].tolist() == run.kept[0].tolist()
            assert_same_logits(ours["logits"], logits, inputs)
    first, second = (told[0][-1] for told in of_ranks)
    visual = first["scores"][0][0].isfinite()
    number = first["kept"][0].shape[1] - int((~visual).sum())
    own = [set(told["scores"][0][0].nan_to_num(-1).topk(number).indices.tolist()) for told in (first, second)]
    assert own[0] != own[1]
    # The first rank's choice holds.
    assert first["kept"][0].tolist() == second["kept"][0].tolist()
    assert own[0] <= set(first["kept"][0][0].tolist())


@pytest.mark.slow
def test_two_lengths(tmp_path):
    compare(tmp_path, "llava_onevision", 2, [{"inputs": ONE_ROW, "options": RULES}, {"inputs": PADDED}])


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

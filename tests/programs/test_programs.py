"""Programs of six families are as the oracle says, at other lengths than their example, without transformers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.programs.families import FAMILIES, NEW, PAD, answers, by_hand, inputs_of, programs
from tests.support import TOLERANCE, assert_same_logits, real_at

ALONE = Path(__file__).parent / "alone.py"
families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != FAMILIES[0])) for name in FAMILIES]
)


def assert_as_by_hand(outputs, name, inputs):
    """What a prefill returned: the oracle's logits, positions and caches, wherever a row has no padding."""
    _, expected, run = by_hand(name, inputs)
    assert_same_logits(outputs["logits"], expected.logits, inputs)
    assert outputs["kept"].tolist() == run.kept[-1].tolist()
    for number, layer in enumerate(expected.past_key_values.layers):
        for which in ("keys", "values"):
            ours, theirs = outputs[f"{which[:-1]}_{number}"], getattr(layer, which)
            assert ours.shape == theirs.shape
            real = real_at(inputs, theirs.shape[2], run.kept_in(number)) if theirs.shape[2] > 11 else ...
            assert_close(ours.movedim(2, 1)[real], theirs.movedim(2, 1)[real], **TOLERANCE)


@families
@torch.no_grad()
def test_the_oracle_says_the_same(name):
    prefill, step = programs(name)
    for text in (12, 19):
        inputs = inputs_of(name, text)
        generated, _, _ = by_hand(name, inputs)
        assert all(value.is_contiguous() for value in prefill.module()(**inputs).values())
        tokens, logits = answers(prefill.module(), step.module(), inputs)
        assert tokens.tolist() == generated.sequences[:, -NEW:].tolist()
        assert_close(logits, torch.stack(generated.logits), **TOLERANCE)


@families
def test_the_program_holds_no_operator_of_ours(name):
    for program in programs(name):
        for module in program.graph_module.modules():
            targets = {str(node.target) for node in getattr(module, "graph", torch.fx.Graph()).nodes}
            assert not [target for target in targets if "sharp_compile" in target or "transformers" in target]


def run_alone(folder, name, kind, pad=PAD):
    """The programs in a folder, on another prompt than their example, in a process of their own."""
    inputs = inputs_of(name, 17, pad)
    generated, _, _ = by_hand(name, inputs)
    torch.save((inputs, generated.sequences[:, -NEW:]), folder / "inputs.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, ALONE, folder, kind], check=True, env=environment)
    first, logits, loaded = torch.load(folder / "outputs.pt")
    assert loaded == []
    assert_as_by_hand(first, name, inputs)
    assert_close(logits, torch.stack(generated.logits), **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_program_runs_without_transformers(name, tmp_path):
    for file, program in zip(("prefill", "step"), programs(name), strict=True):
        torch.export.save(program, tmp_path / f"{file}.pt2")
    run_alone(tmp_path, name, "export")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_ahead_of_time(name, tmp_path):
    # One row: of several ones torch 2.13 can't order the strides where the number of frames varies as well.
    for file, program in zip(("prefill", "step"), programs(name, pad=(0,)), strict=True):
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / f"{file}.pt2"))
    run_alone(tmp_path, name, "aoti", (0,))

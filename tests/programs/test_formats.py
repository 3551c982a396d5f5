"""Programs in other runtimes: the oracle's logits, at another length than the example's."""

import numpy
import pytest
import torch

from sharp_compile.programs import output_names, to_onnx, to_openvino
from tests.programs.families import FAMILIES, NEW, PAD, answers, by_hand, inputs_of, programs
from tests.support import TOLERANCE

SELECTOR = "uniform"
first_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != FAMILIES[0])) for name in FAMILIES]
)


def as_function(run, names):
    """A program of NumPy arrays as one of tensors."""

    def call(**inputs):
        results = run({name: numpy.ascontiguousarray(value.detach().numpy()) for name, value in inputs.items()})
        return {name: torch.from_numpy(numpy.array(value)) for name, value in zip(names, results, strict=True)}

    return call


def onnx_function(program, folder):
    runtime = pytest.importorskip("onnxruntime")
    to_onnx(program).save(folder / "program.onnx")
    session = runtime.InferenceSession(folder / "program.onnx")
    taken = {each.name for each in session.get_inputs()}
    assert [each.name for each in session.get_outputs()] == [f"out_{name}" for name in output_names(program)]

    def run(arrays):
        return session.run(None, {name: array for name, array in arrays.items() if name in taken})

    return as_function(run, output_names(program))


def openvino_function(program, folder):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(to_openvino(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    taken = {each.get_any_name() for each in compiled.inputs}

    def run(arrays):
        return compiled({name: array for name, array in arrays.items() if name in taken}).to_tuple()

    return as_function(run, output_names(program))


def check(name, to_function, folder, pad=PAD):
    prefill, step = (to_function(program, folder) for program in programs(name, SELECTOR, pad))
    inputs = inputs_of(name, 17, pad)
    generated, _, run = by_hand(name, inputs, SELECTOR)
    assert prefill(**inputs)["kept"].tolist() == run.kept[-1].tolist()
    tokens, logits = answers(prefill, step, inputs)
    assert tokens.tolist() == generated.sequences[:, -NEW:].tolist()
    torch.testing.assert_close(logits, torch.stack(generated.logits), **TOLERANCE)


@first_family
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    check(name, onnx_function, tmp_path)


@first_family
def test_openvino(name, tmp_path):
    if name == "gemma3":
        pytest.skip("OpenVINO has no sym_max and sym_min, which the windows of its step need")
    # One row: its index by several tensors, of which masks are made, fails for more.
    check(name, openvino_function, tmp_path, (0,))

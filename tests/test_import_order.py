"""The order in which the package, its backend and transformers are loaded makes no difference."""

import itertools
import json

import pytest
import torch

from tests import oracle
from tests.architectures import ARCHITECTURES, shared_model
from tests.process import output_of
from tests.support import TOLERANCE, generate

LOADS = {
    "package": "import sharp_compile",
    "backend": "import torch; torch._dynamo.lookup_backend('sharp')",
    "module": "from sharp_compile.backend import sharp",
    "transformers": "import transformers.models.llava_onevision.modeling_llava_onevision",
}
CASE = {"layer": 1, "selector": "uniform", "retention": 0.25}
# Padding makes use of all that is changed in transformers for decoding: masks, caches, attention functions.
INPUTS = {"batch": 2, "pad": [3, 0]}
# transformers first; in `test_a_model_whose_file_is_loaded_last` a model comes after the backend.
QUICK = [("transformers", "backend", "module", "package")]

CODE = """
import sys, json
loads, options, inputs = map(json.loads, sys.argv[1:])
for load in loads:
    exec(load)
import torch
from tests.architectures import ARCHITECTURES
from tests.support import generate

torch.set_num_threads(1)
architecture = ARCHITECTURES["llava_onevision"]
model = architecture.build()
model.compile(backend="sharp", options=options)
output = generate(model, architecture.inputs(model, **inputs))
lengths = [layer.keys.shape[-2] for layer in output.past_key_values.layers]
print("RESULT", json.dumps([output.sequences.tolist(), torch.stack(output.logits).tolist(), lengths]))
"""


@pytest.fixture(scope="module")
def expected():
    model = shared_model("llava_onevision")
    with oracle.prune(model, **CASE):
        return generate(model, ARCHITECTURES["llava_onevision"].inputs(model, **INPUTS))


ORDERS = [
    pytest.param(order, marks=() if order in QUICK else pytest.mark.slow, id="-".join(order))
    for order in itertools.permutations(LOADS)
]


@pytest.mark.parametrize("order", ORDERS)
def test_any_order(order, expected):
    options = CASE | {"inner": "eager", "on_skip": "raise"}
    told = output_of(CODE, *map(json.dumps, ([LOADS[name] for name in order], options, INPUTS)))
    sequences, logits, lengths = json.loads(told.partition("RESULT ")[2])
    assert sequences == expected.sequences.tolist()
    torch.testing.assert_close(torch.tensor(logits), torch.stack(expected.logits), **TOLERANCE)
    assert lengths == oracle.cache_lengths(expected.past_key_values)


def test_a_model_whose_file_is_loaded_last():
    """What a model's own module needs is done to those that are loaded after the backend, too."""
    code = (
        "import transformers.modeling_utils\n"
        + LOADS["backend"]
        + "\nimport torch\n"
        + """
from tests.architectures import ALL_ARCHITECTURES
import sharp_compile

torch.set_num_threads(1)
architecture = ALL_ARCHITECTURES["qwen3_vl"]  # DeepStack: its decoder is one graph once that is taken care of
model = architecture.build()
model.compile(backend="sharp", options={"selector": "uniform", "inner": "eager", "on_skip": "raise"})
with torch.no_grad():
    model(**architecture.inputs(model))
print("PRUNED", sum(report.pruned for report in sharp_compile.reports()))
"""
    )
    assert "PRUNED 1" in output_of(code)

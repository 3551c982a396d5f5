"""What is told of the passes, by PyTorch's own means."""

import json
import logging
from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters
from torch._logging._internal import trace_log

from sharp_compile import observability
from tests.support import logged
from tests.toy import Toy, toy_inputs

PHASES = ["canonicalize", "analyze", "plan", "rewrite", "finalize"]


def run(**options):
    options = {"inner": "eager", "retention": 0.25} | options
    return torch.compile(Toy(), backend="sharp", options=options)(**toy_inputs())


@pytest.fixture
def trace():
    """The records of ``TORCH_TRACE``: what is said of each, and its text."""
    records = []

    class Keeping(logging.Handler):
        def emit(self, record):
            records.append((record.metadata, record.payload))

    handler = Keeping()
    trace_log.addHandler(handler)
    yield records
    trace_log.removeHandler(handler)


def test_the_trace_has_decision_plan_and_graphs(trace):
    run()
    found = {
        metadata["artifact"]["name"]: payload
        for metadata, payload in trace
        if metadata.get("artifact", {}).get("name", "").startswith("sharp_compile_")
    }
    names = [*(f"after_{phase}" for phase in PHASES), "decision", "plan", "before", "after"]
    assert {f"sharp_compile_{name}" for name in names} <= set(found)
    assert "pruned after layer 1 of 4" in found["sharp_compile_decision"]
    assert "Gather(" in found["sharp_compile_plan"] and "stage 1" in found["sharp_compile_plan"]
    assert 'f32[1, 26, 50]"' in found["sharp_compile_before"]
    assert 'f32[1, 11, 50]"' in found["sharp_compile_after"] and 'f32[1, 26, 50]"' not in found["sharp_compile_after"]
    assert json.dumps([metadata for metadata, _ in trace])


def test_the_log_has_times_and_operators_of_each_phase():
    with logged("sharp_compile.passes", logging.DEBUG) as messages:
        run()
    told = [message.split(": ")[0] for message in messages if " ms, " in message]
    assert told == PHASES
    rewriting = next(message for message in messages if message.startswith("rewrite: "))
    assert "ms, +" in rewriting or ", +" in rewriting
    assert any(message.startswith("analyze") and "the same operators" in message for message in messages)
    assert any("nodes after 1 cuts: " in message for message in messages)


def test_the_counters():
    counters.clear()
    run()
    assert counters["sharp_compile"] == {"pruned": 1}
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match="runs a graph unpruned"):
        run(layer=3)
    assert counters["sharp_compile"] == {"pruned": 1, "declined": 1}


def test_what_changed():
    assert observability.difference(Counter(add=2, mul=1), Counter(add=3, gather=1)) == "+1 add, +1 gather, -1 mul"
    assert observability.difference(Counter(add=2), Counter(add=2)) == "the same operators"

"""A pruned call waits for no device: nothing in it reads the value of a tensor on the host."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from sharp_compile.kernels import masked_attention
from sharp_compile.passes import pipeline
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import sharp_compile
from sharp_compile.backend import runtime, text_check
from sharp_compile.selector_registry import selector_names
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.support import forward, generate
from tests.toy import Toy, toy_inputs

WAITS = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.item,
    torch.ops.aten.nonzero,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.equal,
    torch.ops.aten.masked_select,
    torch.ops.aten.unique_dim,
    torch.ops.aten._unique2,
    torch.ops.aten.repeat_interleave,
}
# What runs elsewhere is another kernel, in Triton, in which the device reads these values itself.
FOR_CPU = {"sharp_compile::greedy_cosine_dedup"}
ROWS = {"one row": {}, "padded": {"batch": 2, "pad": [0, 3]}}


class Waited(Exception):
    """What a device would be waited for."""


class NoWait(TorchDispatchMode):
    """Raises where a value is read, also inside of our own operators; ``seen`` counts the calls of operators."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        packet = func.overloadpacket
        by_mask = packet in (torch.ops.aten.index, torch.ops.aten.index_put) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or (packet in WAITS and func is not torch.ops.aten.repeat_interleave.self_int):
            raise Waited(str(func))
        own = torch._library.custom_ops.OPDEFS.get(func.name()) if func.name() not in FOR_CPU else None
        with self if own is not None else nullcontext():
            return (func if own is None else own._init_fn)(*args, **(kwargs or {}))


@pytest.fixture
def no_wait(monkeypatch):
    """The mode, active in each call of a pruned graph."""
    mode, call = NoWait(), runtime.PrunedGraph.__call__

    def watched(graph, *args):
        with mode:
            return call(graph, *args)

    monkeypatch.setattr(runtime.PrunedGraph, "__call__", watched)
    return mode


@pytest.fixture
def late(monkeypatch):
    """Graphs are made and run as on a device: the text of their rows is checked when it has arrived."""
    monkeypatch.setattr(masked_attention, "_reads_at_once", lambda positions: False)
    monkeypatch.setattr(pipeline, "text_check", lambda embeddings: "never" if embeddings.shape[0] == 1 else "late")


@pytest.mark.parametrize(
    ("selector", "rows"),
    [
        *((name, "padded") for name in selector_names()),
        ("sharp", "one row"),
        *(pytest.param(name, "one row", marks=pytest.mark.slow) for name in selector_names() if name != "sharp"),
    ],
)
def test_no_rule_waits(selector, rows, no_wait, late):
    inputs = {"pad": [0, 3], "rows": 2} if rows == "padded" else {}
    inputs = toy_inputs(**inputs)
    fast = torch.compile(Toy(), backend="sharp", options={"inner": "eager", "selector": selector, "retention": 0.25})
    fast(**inputs)
    assert no_wait.seen and any(report.pruned for report in sharp_compile.reports())


@pytest.mark.parametrize(
    ("name", "rows"),
    [("llava_onevision", "padded"), *(pytest.param("qwen2_vl", rows, marks=pytest.mark.slow) for rows in ROWS)],
)
def test_no_model_waits(name, rows, no_wait, late):
    model = deepcopy(shared_model(name))
    inputs = ALL_ARCHITECTURES[name].inputs(model, **ROWS[rows])
    sharp_compile.compile(model, inner="eager", retention=0.25)
    forward(model, inputs)
    before = no_wait.seen
    generate(model, inputs)
    assert 0 < before < no_wait.seen


@pytest.mark.parametrize(
    "wait",
    [
        lambda ctx: ctx.hidden[..., 0] * torch.ops.aten.item(ctx.hidden[0, 0, 0]),
        lambda ctx: ctx.hidden[..., 0] + ctx.hidden.nonzero().sum(),
    ],
    ids=["item", "nonzero"],
)
def test_a_wait_is_seen(wait):
    with pytest.raises(Waited), NoWait():
        wait(type("Layer", (), {"hidden": torch.ones(1, 4, 2)}))


def test_a_wait_inside_of_an_operator_of_ours_is_seen(no_wait, monkeypatch):
    waiting = torch._library.custom_ops.OPDEFS["sharp_compile::farthest_point_ranking"]
    body = waiting._init_fn
    monkeypatch.setattr(waiting, "_init_fn", lambda *args: (args[2].max().item(), body(*args))[1])
    fast = torch.compile(Toy(), backend="sharp", options={"inner": "eager", "selector": "diversity"})
    with pytest.raises(Waited):
        fast(**toy_inputs())


@pytest.fixture
def one_row_of_text():
    inputs = toy_inputs(rows=2)
    inputs["ids"][1] = torch.randint(1, 49, (26,))
    return inputs


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("stages", [None, [(0, 0.5), (1, 0.1)]])
def test_a_row_of_too_much_text_is_nan_and_an_error_later(one_row_of_text, late, dynamic, stages):
    options = {"stages": stages} if stages else {"retention": 0.1}
    fast = torch.compile(Toy(), backend="sharp", options={"inner": "eager", **options}, dynamic=dynamic)
    right, _ = fast(**toy_inputs(rows=2))
    wrong, _ = fast(**one_row_of_text)
    assert_close(wrong[0], right[0])
    assert wrong[1].isnan().all()
    with pytest.raises(ValueError, match="an earlier call has returned NaN for a row: row 1 of the batch has 26 text"):
        fast(**toy_inputs(rows=2))
    assert_close(fast(**toy_inputs(rows=2))[0], right)


def test_who_reads_a_report_is_told(one_row_of_text, late):
    fast = torch.compile(Toy(), backend="sharp", options={"inner": "eager", "retention": 0.1})
    fast(**toy_inputs(rows=2))
    (report,) = sharp_compile.reports()
    for read in (sharp_compile.reports, lambda: report.kept):
        fast(**one_row_of_text)
        with pytest.raises(ValueError, match="row 1 of the batch has 26 text tokens"):
            read()
    assert report.kept.shape == (2, 8)


def test_a_call_waits_for_no_check(one_row_of_text, late, monkeypatch):
    """Of a run whose text has not arrived yet the next call does not tell; who reads the report waits for it."""

    class Event:
        arrived = False

        def query(self):
            return self.arrived

        def synchronize(self):
            self.arrived = True

    monkeypatch.setattr(text_check, "_to_host", lambda text: (text, Event()))
    fast = torch.compile(Toy(), backend="sharp", options={"inner": "eager", "retention": 0.1})
    fast(**one_row_of_text)
    fast(**toy_inputs(rows=2))
    with pytest.raises(ValueError, match="row 1 of the batch"):
        sharp_compile.reports()


def test_a_graph_that_writes_into_its_inputs_runs_once(one_row_of_text, late):
    class Counts(Toy):
        def forward(self, ids, features, count):
            count.add_(1)
            return super().forward(ids, features)

    count = torch.zeros(())
    fast = torch.compile(Counts(), backend="sharp", options={"inner": "eager", "retention": 0.1})
    assert fast(**one_row_of_text, count=count)[0][1].isnan().all()
    assert count == 1
    with pytest.raises(ValueError, match="row 1 of the batch has 26 text tokens"):
        sharp_compile.reports()

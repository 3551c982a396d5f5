"""Many settings and many kinds of calls in one process: each gets its own graph, or it is said that it does not."""

import functools
import inspect
import logging
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.variables.tensor import TensorVariable
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from sharp_compile.backend import entry
from sharp_compile.integrations.recompile_limit import LIMIT
from tests.support import logged
from tests.toy import Toy, toy_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 1.0)


def options(**more):
    return {"inner": "eager", "selector": "uniform", "on_skip": "raise", "retention": 0.25} | more


def compiled(model, **more):
    return torch.compile(model, backend="sharp", options=options(**more))


def length(result):
    return result[0].shape[1]


@pytest.mark.parametrize(
    "how",
    [
        "model.compile",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("torch.compile", "sharp_compile.compile")),
    ],
)
def test_a_sweep_of_settings_on_one_model(how):
    model, inputs, lengths = Toy(), toy_inputs(), []
    for share in SHARES:
        if how == "torch.compile":
            fast = compiled(model, retention=share)
        elif how == "model.compile":
            model.compile(backend="sharp", options=options(retention=share))
            fast = model
        else:
            fast = sharp_compile.compile(model, **options(retention=share))
        lengths.append(length(fast(**inputs)))
    assert lengths == [6 + round(20 * share) for share in SHARES]


def static(model, **more):
    """Compiled for each length anew."""
    return torch.compile(model, backend="sharp", options=options(**more), dynamic=False)


def reach_limit(fast):
    """Call it with as many kinds of inputs as there is room for."""
    for text in (6, 7):
        fast(**toy_inputs(text=text))


@pytest.fixture
def room_for_two():
    with torch._dynamo.config.patch(recompile_limit=2):
        yield


def test_who_reaches_the_limit_gets_an_error_each_time(room_for_two):
    reach_limit(fast := static(Toy()))
    for text in (8, 9):
        for _ in range(2):
            with pytest.raises(CannotPrune, match=r"forward \(.*toy.py:\d+\) for 2 kinds .* isolate_recompiles=True"):
                fast(**toy_inputs(text=text))
    assert length(fast(**toy_inputs())) == 11


def test_who_reaches_the_limit_is_warned_once(room_for_two):
    model, inputs = Toy(), toy_inputs(text=8)
    reach_limit(fast := static(model, on_skip="warn"))
    with pytest.warns(UserWarning, match="for 2 kinds of calls") as told:
        result = fast(**inputs)
    assert len(told) == 1
    assert_close(result, model(**inputs))
    reach_limit(fast := static(model, on_skip="silent"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fast(**inputs)


def test_the_limit_of_others_is_dynamos():
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    fast = torch.compile(nn.Linear(3, 3), backend=count, dynamic=False)
    for kind in range(12):
        fast(torch.ones(kind + 2, 3))
    assert len(graphs) == torch._dynamo.config.recompile_limit == 8


def test_kinds_of_calls_beyond_dynamos_limit():
    model = nn.Sequential(nn.Linear(3, 3))
    fast = torch.compile(model, backend="sharp", options={"inner": "eager"}, dynamic=False)
    for kind in range(12):
        fast(torch.ones(kind + 2, 3))
    assert len(sharp_compile.reports()) == 12
    assert LIMIT >= 64


@pytest.fixture
def graph_of_another_setting(monkeypatch):
    """Lets any setting run the graph that the first one compiled: as Dynamo does at its limit."""
    held = {}
    first = entry.Precompilable

    def hold(*arguments):
        held["graph"] = held.get("graph") or first(*arguments)
        return held["graph"]

    monkeypatch.setattr(entry, "Precompilable", hold)

    def run_held(module, inputs):
        return held.pop("graph", module.forward)

    return run_held


def test_a_graph_runs_as_its_caller_asks(graph_of_another_setting):
    model, inputs = Toy(), toy_inputs()
    expected, _ = model(**inputs)
    for share in (0.9, 0.5, 0.25, 0.5, 0.9):
        result = compiled(model, retention=share)(**inputs)
        assert length(result) == 6 + 20 * share
        kept = [report.kept for report in sharp_compile.reports() if report.kept is not None]
        kept = next(each for each in kept if each.shape[1] == length(result))
        assert_close(result[0], model(**inputs, cut={1: kept})[0], **CLOSE)
    stock = torch.compile(model, backend=graph_of_another_setting)(**inputs)
    assert_close(stock[0], expected)
    # Three of the backend, and two of the graph that it made first, each compiled once.
    assert sum(report.pruned for report in sharp_compile.reports()) == 3 + 2


def test_a_graph_that_was_declined_is_pruned_for_a_setting_that_can_be(graph_of_another_setting):
    model, inputs = Toy(), toy_inputs()
    assert length(compiled(model, layer=3, on_skip="silent")(**inputs)) == 26
    assert length(compiled(model)(**inputs)) == 11
    with pytest.raises(CannotPrune, match="layer=3 leaves no later layer"):
        compiled(model, layer=3)(**inputs)


def test_dynamos_expected_messages_are_hidden_for_this_backend_alone():
    class Asks(nn.Module):
        def forward(self, x):
            return x * x.sum().item()

    def said(name):
        torch._dynamo.reset()
        TensorVariable._warn_capture_scalar_outputs.cache_clear()  # it is said once a process
        with logged("torch._dynamo", logging.WARNING) as messages:
            torch.compile(Asks(), backend=name)(torch.ones(2, 2))
        return [message for message in messages if "Tensor.item()" in message]

    assert said("eager")
    assert not said("sharp")


def test_dynamos_expected_warnings_are_hidden_for_this_backend_alone():
    @functools.lru_cache
    def once(number):
        return number + 1

    def said(name):
        torch._dynamo.reset()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.compile(lambda x: x * once(2), backend=name)(torch.ones(2, 2))
        return [warning for warning in told if "lru_cache" in str(warning.message)]

    assert said("eager")
    assert not said("sharp")


def test_a_graph_runs_outside_of_all_compilations_as_it_was_made(graph_of_another_setting):
    inputs, given = toy_inputs(), []

    def other(module, example):
        graph = graph_of_another_setting(module, example)

        def run(*args):
            given.append((graph, args))
            return graph(*args)

        return run

    compiled(Toy(), retention=0.9)(**inputs)
    torch.compile(Toy(), backend=other)(**inputs)
    graph, args = given[0]
    assert sorted(result.shape[1] for result in graph(*args) if result.ndim == 3) == [24]


@pytest.mark.skipif("isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="no regions")
def test_a_setting_counts_for_no_other_compilation():
    """Each has a region of its own, and keeps it: the same setting compiles nothing anew."""
    inputs, graphs = toy_inputs(), []
    stock = torch.compile(Toy(), backend=lambda module, inputs: graphs.append(module) or module.forward)
    with torch._dynamo.config.patch(recompile_limit=2):
        for retention in (0.9, 0.7, 0.5, 0.3):
            for _ in range(2):
                compiled(Toy(), retention=retention)(**inputs)
        assert [report.pruned for report in sharp_compile.reports()] == [True] * 4
        stock(**inputs)
        stock(**toy_inputs(rows=2))
    assert len(graphs) == 2

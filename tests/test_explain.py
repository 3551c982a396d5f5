"""What people get to see."""

import logging

import torch
from torch._dynamo.backends.registry import lookup_backend

import sharp_compile
from sharp_compile.backend import inner
from tests.backend.test_cross_graph import Broken
from tests.toy import Toy, toy_inputs

OPTIONS = {"inner": "eager", "retention": 0.25}


def test_explain_a_compiled_model(capsys):
    model = Toy()
    model.compile(backend="sharp", options=OPTIONS)
    for _ in range(2):  # the second time nothing is compiled
        explanation = sharp_compile.explain(model, **toy_inputs())
        assert explanation.pruned
        (graph,) = explanation.graphs
        assert (graph.sequence_length, graph.pruned_length, graph.kept_tokens) == (26, 11, 5)
        assert "26 -> 11" in capsys.readouterr().out
    assert len(sharp_compile.reports()) == 1


def test_explain_compiles_a_model_that_is_not(capsys, monkeypatch):
    monkeypatch.setattr(inner, "lookup_backend", lambda _: lookup_backend("eager"))
    model = Toy()
    explanation = sharp_compile.explain(model, ids=torch.arange(8)[None], features=torch.randn(0, 16))
    assert explanation.graphs
    capsys.readouterr()
    assert model._compiled_call_impl is None


def test_explain_shows_every_graph(capsys):
    model = Broken()
    model.compile(backend="sharp", options=OPTIONS)
    explanation = sharp_compile.explain(model, **toy_inputs())
    assert [graph.pruned for graph in explanation.graphs] == [False, True]
    assert explanation.graphs == tuple(sharp_compile.reports())
    capsys.readouterr()


def test_the_log_shows_the_graph_before_and_after():
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("sharp_compile")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        torch.compile(Toy(), backend="sharp", options=OPTIONS)(**toy_inputs())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    decision, before, after = (text for text in records if text.startswith(("pruned ", "graph ")))
    assert decision.startswith("pruned after layer 1 of 4")
    assert "graph before pruning" in before and "gather" not in before
    assert "graph after pruning" in after and "gather" in after


def test_reset_forgets_reports_only():
    fast = torch.compile(Toy(), backend="sharp", options=OPTIONS)
    fast(**toy_inputs())
    sharp_compile.reset()
    assert sharp_compile.reports() == []
    assert fast(**toy_inputs())[0].shape[1] == 11

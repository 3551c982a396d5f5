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


def test_explain_what_torch_compile_returned(capsys):
    """It runs with its own options; with another backend, or for another one, the default ones are shown."""
    fast = torch.compile(Toy(), backend="sharp", options=OPTIONS)
    for _ in range(2):
        assert sharp_compile.explain(fast, **toy_inputs()).graphs[-1].kept_tokens == 5
    capsys.readouterr()


def test_explain_a_model_that_is_compiled_with_another_backend(capsys, monkeypatch):
    monkeypatch.setattr(inner, "lookup_backend", lambda _: lookup_backend("eager"))
    in_place, wrapped = Toy(), torch.compile(Toy(), backend="eager")
    in_place.compile(backend="eager")
    for model in (in_place, wrapped):
        model(**toy_inputs())
        explanation = sharp_compile.explain(model, **toy_inputs())
        assert repr(explanation) == (
            "<Explanation: 1 of 1 graphs pruned: pruned after layer 1 of 0..3: 26 -> 8 tokens, 20 -> 2 of them visual>"
        )
        assert "26 -> 8" in capsys.readouterr().out


def test_an_explanation_has_the_options_that_had_a_say(capsys):
    model = sharp_compile.compile(Toy(), inner="eager", selector="uniform", stages=[(0, 0.5), (2, 0.25)])
    options = sharp_compile.explain(model, **toy_inputs()).options
    capsys.readouterr()
    assert (options["selector"], options["stages"], options["hoist"]) == ("uniform", [(0, 0.5), (2, 0.25)], True)
    assert not {"retention", "layer", "segment", "debias", "dedup"} & set(options)


def test_a_report_is_a_line():
    torch.compile(Toy(), backend="sharp", options=OPTIONS)(**toy_inputs())
    torch.compile(lambda x: x + 1, backend="sharp", options=OPTIONS)(torch.ones(1))
    pruned, other = sharp_compile.reports()
    assert pruned.summary() == "pruned after layer 1 of 0..3: 26 -> 11 tokens, 20 -> 5 of them visual"
    assert other.summary() == "not pruned: no visual tokens are injected in this graph"
    assert repr(pruned) == f"<GraphReport: {pruned.summary()}>"


def test_explain_shows_every_graph(capsys):
    model = Broken()
    model.compile(backend="sharp", options=OPTIONS)
    explanation = sharp_compile.explain(model, **toy_inputs())
    assert [graph.pruned for graph in explanation.graphs] == [False, True]
    for shown, graph in zip(explanation.graphs, sharp_compile.reports(), strict=True):
        assert all(getattr(shown, name) is value for name, value in vars(graph).items())
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

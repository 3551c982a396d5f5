"""Several threads compile and run at once: the same numbers as one thread after the other."""

from __future__ import annotations

import gc
import threading
import traceback
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import sharp_compile
from sharp_compile import report, tensor_records
from sharp_compile.backend.injection_registry import InjectionRegistry
from sharp_compile.report import latest_kept
from tests.architectures import ARCHITECTURES, shared_model
from tests.backend.test_cross_graph import Broken
from tests.toy import Toy, toy_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def at_once(*functions):
    """Runs functions in a thread each, which all begin together; what one raises is raised."""
    begin, raised = threading.Barrier(len(functions)), []

    def run(function):
        begin.wait()
        try:
            function()
        except BaseException:
            raised.append(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised, "\n".join(raised)


def check(fast, model, inputs, layer=1):
    """A call of a compiled model is what the model gives when it is pruned by hand to the positions that it kept."""
    with torch.no_grad():
        actual, kept = fast(**inputs), latest_kept()
        expected = model(**inputs, cut={layer: kept})
    if isinstance(actual, tuple):
        actual, expected = actual[0], expected[0]
    assert kept.shape[1] < inputs["ids"].shape[1]
    assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("inner", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_different_models_are_compiled_and_run_at_once(inner):
    """By the function and not by its name, which torch registers in the first thread that asks for it."""

    def one(number):
        # Random weights are those of the process: they are made before the threads begin.
        model, fast = (Toy(layers=3, eager=bool(number)) for _ in range(2))

        def run():
            sharp_compile.compile(fast, inner=inner, retention=0.25, layer=number, selector="uniform")
            for _ in range(3):
                check(fast, model, toy_inputs(20 + number), layer=number)

        return run

    at_once(one(0), one(1))


@pytest.mark.parametrize("kind", [pytest.param(Toy, marks=pytest.mark.slow), Broken])
def test_one_compiled_model_is_called_at_once(kind):
    """With other lengths and other numbers of visual tokens in each thread, before and after it is compiled."""
    model = kind()
    options = {"inner": "eager", "retention": 0.25, "on_skip": "raise", "selector": "uniform"}
    fast = torch.compile(model, backend="sharp", options=options, dynamic=True)

    def calls(*sizes):
        def run():
            for size in sizes * 4:
                check(fast, model, toy_inputs(size))

        return run

    at_once(calls(20, 33), calls(41, 26))


def test_a_decoder_behind_a_break_is_made_once():
    """Embeddings that another graph injected into are found by all threads at once."""
    model, made = Broken(), []

    def inner(module, inputs):
        if any(node.target is F.scaled_dot_product_attention for node in module.graph.nodes):
            made.append(module)
        return module.forward

    fast = torch.compile(model, backend="sharp", options={"inner": inner, "retention": 0.25})
    check(fast, model, toy_inputs(20))
    at_once(*[lambda: check(fast, model, toy_inputs(20))] * 4)
    assert len(made) == 1


def test_each_thread_has_its_own_visual_tokens():
    model = Toy()
    embed = torch.nn.Embedding(50, 16).requires_grad_(False)

    class Language(torch.nn.Module):
        def forward(self, hidden, cut=None):
            return model.through_layers(hidden, cut=cut)[0]

    language = Language()
    fast = torch.compile(
        language, backend="sharp", options={"inner": "eager", "retention": 0.25, "selector": "uniform"}
    )

    def calls(first):
        is_visual = torch.zeros(1, 30, dtype=torch.bool)
        is_visual[:, first : first + 20] = True

        def run():
            for _ in range(5):
                hidden = embed(torch.arange(30)[None])
                with torch.no_grad(), sharp_compile.visual_tokens(is_visual):
                    actual, kept = fast(hidden), latest_kept()
                    assert is_visual[0, kept[0]].sum() == 5 and kept.shape == (1, 15)
                    assert_close(actual, language(hidden, cut={1: kept}), **CLOSE)

        return run

    at_once(calls(1), calls(8))


def test_text_is_told_of_while_another_thread_compiles():
    """`torch.compiler.is_compiling` speaks of all threads; whose ids show visual tokens is told nevertheless."""
    from sharp_compile.integrations.transformers import prompt
    from sharp_compile.visual_annotation import _annotated

    class Model(torch.nn.Module):
        config = type("Config", (), {"video_token_id": 49})

        def forward(self, input_ids):
            return _annotated.get()

    model = Model()
    tell = prompt.telling(model.forward, prompt.inspect.signature(model.forward), model, {})
    with torch.compiler._compile_session_context():
        told = tell(torch.tensor([[1, 49]]))
    assert told.tolist() == [[False, True]]


def test_what_another_thread_does_is_not_watched():
    model = Toy()
    fast = torch.compile(model, backend="sharp", options={"inner": "eager"})
    with report.watch() as seen:
        at_once(lambda: fast(**toy_inputs()))
        assert seen == []
        fast(**toy_inputs())
    assert len(seen) == 1


def test_the_collector_may_run_while_embeddings_are_published(monkeypatch):
    """Then it tells of others that are gone, in the middle of it."""
    registry, gone = InjectionRegistry(), []
    old = torch.zeros(1, 2, 3)
    registry.publish(old, torch.zeros(1, 2), 1, lambda: gone.append(True))
    circle = [old]
    circle.append(circle)
    del old, circle
    version = tensor_records._version

    def collecting(value):
        gc.collect()
        return version(value)

    monkeypatch.setattr(tensor_records, "_version", collecting)
    new = torch.zeros(1, 2, 3)
    thread = threading.Thread(target=registry.publish, args=(new, torch.zeros(1, 2), 1, lambda: None), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and gone == [True]


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl"])
@pytest.mark.slow
def test_a_model_of_transformers_generates_and_has_losses_in_several_threads(name):
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    fast = sharp_compile.compile(architecture.build(), retention=0.25, inner="eager", selector="uniform")
    cases = [architecture.inputs(model, pad=pad) for pad in ([0], [0, 3], [2, 0])]

    def of(inputs):
        with torch.no_grad(), warnings.catch_warnings():
            tokens = fast.generate(**inputs, max_new_tokens=3, do_sample=False).tolist()
            output = fast(**inputs, labels=inputs["input_ids"])
        return tokens, output.loss, output.logits

    alone = [of(inputs) for inputs in cases]

    def run(number):
        for _ in range(3):
            tokens, *others = of(cases[number])
            assert tokens == alone[number][0]
            assert_close(others, list(alone[number][1:]), **CLOSE)

    at_once(*[lambda number=number: run(number) for number in (0, 1, 2)])
    assert shared_model(name) is not fast

"""Timing in turns, counting where the work is done, and models that share their weights."""

from types import SimpleNamespace

import pytest
import torch

from sharp_compile.demo import measure


def test_functions_are_timed_in_turns_after_a_first_call_each(monkeypatch):
    calls = []
    steps = []
    clock = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow_at_first(name, first, later):
        def run():
            clock[0] += first if name not in calls else later
            calls.append(name)

        return run

    timings = measure.interleave(
        {"a": slow_at_first("a", 8.0, 1.0), "b": slow_at_first("b", 0.0, 2.0)}, 3, steps.append
    )
    assert calls == ["a", "b"] * 4
    assert steps == calls
    assert (timings["a"].median, timings["b"].median) == (1.0, 2.0)
    assert (timings["a"].compilation, timings["b"].compilation) == (7.0, 0.0)


def test_cache_lengths_are_those_of_the_keys_held():
    layers = [SimpleNamespace(keys=torch.zeros(1, 2, length, 4)) for length in (50, 50, 7)]
    state_only = SimpleNamespace(keys=None)
    output = SimpleNamespace(past_key_values=SimpleNamespace(layers=[*layers, state_only]))
    assert measure.cache_lengths(output) == [50, 50, 7, 0]


class Small(torch.nn.Module):
    """A stand-in for a model: `generate` runs an encoder, then the forward that gets compiled."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(16, 8, bias=False)
        self.decoder = torch.nn.Linear(8, 4, bias=False)

    def forward(self, features):
        return self.decoder(features)

    @torch.no_grad()
    def generate(self, pixels, **_):
        return self(self.encoder(pixels))


@pytest.fixture
def half(monkeypatch):
    """A backend in the place of "sharp" that hands on a graph which computes half as much."""

    def backend(graph, examples, options):
        inner = options["inner"](graph, examples)
        return lambda *inputs: inner(*(x[:5] if x.shape == (10, 8) else x for x in inputs))

    known = torch._dynamo.backends.registry._COMPILER_FNS
    monkeypatch.setitem(known, "sharp", backend)


def test_what_the_compiled_graphs_do_is_counted_in_place_of_the_forward(half):
    case = SimpleNamespace(model=Small(), inputs={"pixels": torch.zeros(10, 16)})
    eager = measure.eager_flops(case)
    assert eager == measure.Flops(prefill=2 * 10 * 8 * (16 + 4), decoder=2 * 10 * 8 * 4)
    pruned = measure.pruned_flops(case, {}, eager)
    assert pruned == measure.Flops(prefill=2 * 10 * 8 * 16 + 2 * 5 * 8 * 4, decoder=2 * 5 * 8 * 4)

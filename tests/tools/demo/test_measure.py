"""Counting where the work is done, and what is left in the cache."""

from types import SimpleNamespace

import pytest
import torch

from sharp_compile.tools.demo import measure


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

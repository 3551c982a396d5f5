"""Equal layers are traced once by Dynamo, and what is not equal, or no longer, is traced by itself."""

import pytest
import torch
from packaging.version import Version
from sharp_compile.passes.canonicalize.equal_layers import EQUAL_LAYER, TRACED_LAYER
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import sharp_compile
from sharp_compile.backend import entry
from sharp_compile.integrations.transformers import layer_kinds

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="Dynamo traced the forward of a module past its __call__"
)

SIZES = dict(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)
IDS = torch.arange(12)[None]


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """How many layers each graph has that were traced, or found equal to one: a pair of numbers for each attempt."""
    counts = []
    write_out = entry.write_out_equal_layers

    def counting(graph):
        calls = [node for node in graph.nodes if node.op == "call_function"]
        first = [sum(node.target is op and node.args[2] == 0 for node in calls) for op in (TRACED_LAYER, EQUAL_LAYER)]
        if any(first):
            counts.append(tuple(first))
        return write_out(graph)

    monkeypatch.setattr(entry, "write_out_equal_layers", counting)
    monkeypatch.setattr(layer_kinds, "_apart", set())
    yield counts
    torch._dynamo.reset()
    sharp_compile.reset()


def llama(layers=5):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SIZES)).eval()


def check(model, **call):
    """Compare a model with itself, compiled; return what the compiled one gave."""
    with torch.no_grad():
        expected = model.forward(IDS, **call)
        model.compile(backend="sharp", options={"inner": "eager", "on_skip": "silent"})
        given = model(IDS, **call)
    torch.testing.assert_close(given.logits, expected.logits)
    for ours, theirs in zip(given.past_key_values.layers, expected.past_key_values.layers, strict=True):
        torch.testing.assert_close((ours.keys, ours.values), (theirs.keys, theirs.values))
    return given


def test_the_first_of_equal_layers_is_traced(traced):
    check(llama())
    assert traced == [(1, 4)]


def test_layers_of_each_kind_of_window(traced):
    config = Gemma3TextConfig(num_hidden_layers=6, sliding_window=4, sliding_window_pattern=3, **SIZES)
    check(Gemma3ForCausalLM(config).eval())
    assert traced == [(2, 4)]


def test_decoding_goes_on_after_it():
    model = llama()
    given = check(model)
    with torch.no_grad():
        expected = model.forward(torch.cat([IDS, IDS[:, :1]], 1)).logits[:, -1]
        step = model(IDS[:, :1], past_key_values=given.past_key_values)
    torch.testing.assert_close(step.logits[:, -1], expected)


def test_without_reuse_of_layers_all_are_traced(traced):
    model = llama()
    model.compile(backend="sharp", options={"inner": "eager", "on_skip": "silent", "reuse_layers": False})
    with torch.no_grad():
        model(IDS)
    assert traced == []


def test_with_gradients_all_are_traced(traced):
    model = llama()
    model.compile(backend="sharp", options={"inner": "eager", "on_skip": "silent"})
    model(IDS).logits.sum().backward()
    assert traced == []
    assert model.model.layers[3].mlp.up_proj.weight.grad is not None


def slow(case):
    return pytest.param(case, marks=pytest.mark.slow)


def scale(model):
    model.model.layers[2].self_attn.scaling *= 2


def widen(model):
    layer = model.model.layers[2]
    layer.mlp.up_proj, layer.mlp.gate_proj = nn.Linear(16, 32, bias=False), nn.Linear(16, 32, bias=False)
    layer.mlp.down_proj = nn.Linear(32, 16, bias=False)


def tie(model):
    layer = model.model.layers[2]
    layer.mlp.gate_proj.weight = layer.mlp.up_proj.weight


def hook(model):
    model.model.layers[2].mlp.register_forward_hook(lambda module, args, output: output * 2)


def replace_forward(model):
    mlp = model.model.layers[2].mlp
    mlp.forward = lambda states: type(mlp).forward(mlp, states) * 2


@pytest.mark.parametrize("change", [hook, tie, *map(slow, (scale, widen, replace_forward))])
def test_a_layer_that_differs_is_traced_by_itself(traced, change):
    model = llama()
    change(model)
    check(model)
    assert sum(traced[-1]) in (4, 5) and traced[-1][1] == 3


def reweigh(model):
    model.model.layers[2].mlp.up_proj.weight = nn.Parameter(torch.randn(24, 16))


@pytest.mark.parametrize("change", [scale, reweigh, *map(slow, (widen, tie, replace_forward))])
def test_a_layer_that_changes_later_is_noticed(change):
    """Dynamo guards on a layer that it did not trace as on one that it did."""
    model = llama()
    check(model)
    change(model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, model.forward(IDS).logits)


class LooksAtItsNumber(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states, **kwargs) * (2 if self.self_attn.layer_idx > 2 else 1)


class LooksIntoTheCache(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        return super().forward(hidden_states, **kwargs) * (1 + cache.get_seq_length())


class Counts(LlamaDecoderLayer):
    calls = 0

    def forward(self, hidden_states, **kwargs):
        self.calls += 1
        return super().forward(hidden_states, **kwargs)


SHARED = torch.full((16,), 0.5)


class ReadsWhatItIsNotGiven(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states * SHARED, **kwargs)


class DrawsALength(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        length = (hidden_states[0, :, 0] > -100).sum().item()
        return super().forward(hidden_states, **kwargs) * length / hidden_states.shape[1]


class DrawsPlaces(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        places = (hidden_states[0, :, 0] > 0).nonzero()
        return super().forward(hidden_states, **kwargs) * (1 + places.sum())


@pytest.mark.parametrize(
    "cls",
    [LooksAtItsNumber, ReadsWhatItIsNotGiven, DrawsPlaces, *map(slow, (LooksIntoTheCache, Counts, DrawsALength))],
)
def test_a_layer_that_can_not_stand_for_others(traced, cls):
    model = llama()
    for layer in model.model.layers:
        layer.__class__ = cls
    with torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
        check(model)
    assert traced[1:] == []
    assert {family[0] for family in layer_kinds._apart} == {cls}
    if cls is Counts:
        assert [layer.calls for layer in model.model.layers] == [2] * 5


def test_a_layer_that_is_given_one_value_twice(traced):
    """The first of these layers gets its input as the input of the model too, and can't tell one from the other."""

    class Skips(LlamaDecoderLayer):
        def forward(self, hidden_states, first, **kwargs):
            return super().forward(hidden_states + first, **kwargs)

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = llama()
            for layer in self.model.model.layers:
                layer.__class__ = Skips

        def forward(self, states, tables):
            first = states
            for layer in self.model.model.layers:
                states = layer(states, first, position_embeddings=tables)
            return states

    stack = Stack().eval()
    states = torch.randn(1, 12, 16)
    tables = stack.model.model.rotary_emb(states, torch.arange(12)[None])
    with torch.no_grad():
        expected = stack.forward(states, tables)
        stack.compile(backend="sharp", options={"inner": "eager", "on_skip": "silent"})
        torch.testing.assert_close(stack(states, tables), expected)
    assert traced == [(1, 4)]


def test_a_layer_that_breaks_the_graph(traced):
    class Breaks(LlamaDecoderLayer):
        def forward(self, hidden_states, **kwargs):
            torch._dynamo.graph_break()
            return super().forward(hidden_states, **kwargs)

    model = llama()
    for layer in model.model.layers:
        layer.__class__ = Breaks
    check(model)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3, 4]

"""A softmax with sinks is one function, right for any number of keys."""

import pytest
import torch
import torch.nn.functional as F
from sharp_compile.passes.analysis.attention import find_attention
from sharp_compile.passes.analysis.sinks import softmax_with_sinks
from sharp_compile.passes.canonicalize.sinks import write_sinks
from torch import nn

import sharp_compile
from sharp_compile.report import latest_kept
from tests.graphs import dynamo_graph
from tests.passes.analysis.test_sinks import MASK, SINKS, K, Q, in_front, plain, shifted, shifted_by_amax
from tests.toy import Layer, Toy, toy_inputs


def graph_of(function, *inputs):
    module = dynamo_graph(function, *inputs)
    write_sinks(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def results(module, **inputs):
    """What a graph gives, whose inputs have the names and an order of Dynamo's."""
    names = (node.name[2:-1] for node in module.graph.find_nodes(op="placeholder"))
    return module(*map(inputs.__getitem__, names))


def calls(module):
    return module.graph.find_nodes(op="call_function", target=softmax_with_sinks)


@pytest.mark.parametrize("form", [shifted, shifted_by_amax, plain])
def test_it_gives_the_same_numbers(form):
    inputs = Q, K, MASK, SINKS
    before = find_attention(dynamo_graph(form, *inputs).graph)
    module = graph_of(form, *inputs)
    assert len(calls(module)) == 1
    assert not [node for node in module.graph.nodes if "softmax" in str(node.target) and node not in calls(module)]
    (actual,) = results(module, q=Q, k=K, mask=MASK, sinks=SINKS)
    assert actual.equal(form(*inputs))
    (attention,) = find_attention(module.graph)
    assert [attention.sinks.name] == [each.sinks.name for each in before]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_types_are_those_of_the_model(dtype):
    inputs = {"q": Q.to(dtype), "k": K.to(dtype), "mask": MASK.to(dtype), "sinks": SINKS}
    (actual,) = results(graph_of(shifted, *inputs.values()), **inputs)
    assert actual.equal(shifted(**inputs))


@pytest.mark.parametrize("length", [1, 4])
def test_it_is_right_for_fewer_keys(length):
    (call,) = calls(graph_of(shifted, Q, K, MASK, SINKS))
    scores, sinks = torch.randn(3, 2, length, length), torch.randn(1, 2, 1, 1)
    expected = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp())
    torch.testing.assert_close(call.target(scores, sinks, *call.args[2:]), expected)


def test_what_reads_the_share_of_the_sinks_keeps_it():
    def both(q, k, mask, sinks):
        weights = torch.softmax(torch.cat([q @ k.transpose(2, 3), sinks.view(1, 2, 1, 1).expand(1, 2, 6, 1)], -1), -1)
        return weights[..., :-1] @ k, weights[..., -1:]

    module = graph_of(both, Q, K, MASK, SINKS)
    assert len(calls(module)) == 1
    for actual, expected in zip(results(module, q=Q, k=K, sinks=SINKS), both(Q, K, MASK, SINKS), strict=True):
        assert actual.equal(expected)


def test_sinks_in_front_stay_as_they_are():
    assert not calls(graph_of(in_front, Q, K, MASK, SINKS))


class WithSinks(Layer):
    """Attends as transformers does where heads have sinks."""

    def __init__(self, *sizes):
        super().__init__(*sizes, eager=False)
        self.sinks = nn.Parameter(torch.arange(self.heads) - 1.0)

    def of_heads(self):
        return self.sinks

    def attend(self, q, k, v, mask):
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 1) for each in (k, v))
        logits = torch.matmul(q, k.transpose(2, 3)) * self.head_dim**-0.5 + mask
        sinks = self.of_heads().reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
        logits = torch.cat([logits, sinks], dim=-1)
        logits = logits - logits.max(dim=-1, keepdim=True).values
        weights = F.softmax(logits, dim=-1, dtype=logits.dtype)[..., :-1]
        return torch.matmul(weights, v)


def toy_with_sinks():
    model = Toy(eager=True)
    model.layers = nn.ModuleList(WithSinks(16, 4, 2, 8) for _ in range(4))
    return model


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("selector", ["uniform", "fastv", "sparsevlm", "visiondrop"])
def test_a_decoder_is_pruned_as_it_prunes_itself(selector, dynamic, inner):
    model = toy_with_sinks()
    options = {"retention": 0.25, "selector": selector, "inner": inner, "on_skip": "raise"}
    fast = torch.compile(model, backend="sharp", options=options, dynamic=dynamic)
    # As many tokens as channels, and as a head has channels and heads.
    for sizes in ({}, {"visual": 10, "rows": 2, "pad": [0, 3]}, {"visual": 26}):
        inputs = toy_inputs(**sizes)
        logits, keys = fast(**inputs)
        expected, own_keys = model.forward(**inputs, cut={1: latest_kept()})
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(keys, own_keys, atol=1e-5, rtol=1e-4)


def test_the_gradients_are_those_of_the_model():
    model, inputs = toy_with_sinks(), toy_inputs()
    options = {"retention": 0.25, "inner": "aot_eager", "on_skip": "raise"}
    torch.compile(model, backend="sharp", options=options)(**inputs)[0].sum().backward()
    (report,) = sharp_compile.reports()
    actual = [layer.sinks.grad.clone() for layer in model.layers]
    model.zero_grad()
    model.forward(**inputs, cut={report.layer: report.kept})[0].sum().backward()
    torch.testing.assert_close(actual, [layer.sinks.grad for layer in model.layers], atol=1e-5, rtol=1e-4)

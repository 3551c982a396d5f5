"""Merging of tokens: where it is right, and where it can't be proven."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from sharp_compile.report import latest_kept
from tests import oracle
from tests.backend.test_cross_graph import Broken
from tests.toy import Layer, Toy, toy_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def pairs(ctx):
    """The norm of the hidden states; four positions next to each other, text or not, stand under the first.

    Every second of these is kept.
    """
    position = torch.arange(ctx.is_visual.shape[1], device=ctx.is_visual.device).expand_as(ctx.frame)
    return norms(ctx) + 100 * (position % 8 == 0), position - position % 4


def norms(ctx):
    return ctx.hidden.norm(dim=-1)


def compiled(model, selector=pairs, dynamic=None, **options):
    options = {"inner": "eager", "on_skip": "raise", "retention": 0.25, "selector": selector} | options
    return torch.compile(model, backend="sharp", options=options, dynamic=dynamic)


def logits_of(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def check(model, actual, inputs):
    """Against the eager model, whose layer 1 hands on the merged states."""
    visual, kept = inputs["ids"] == 49, latest_kept()
    position = torch.arange(visual.shape[1]).expand_as(visual)

    def merge(layer, args, outputs):
        return oracle.merge(outputs[0], kept, position - position % 4, visual), outputs[1]

    dropped = logits_of(model(**inputs, cut={1: kept}))
    hook = model.layers[1].register_forward_hook(merge)
    expected = logits_of(model(**inputs, cut={1: kept}))
    hook.remove()
    real = inputs["attention_mask"].gather(1, kept).bool() if "attention_mask" in inputs else slice(None)
    assert_close(logits_of(actual)[real], expected[real], **CLOSE)
    assert (dropped - expected)[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows", [{}, {"rows": 2, "pad": [0, 3]}], ids=["one row", "padded"])
@pytest.mark.parametrize("kind", [Toy, Broken])
def test_kept_tokens_become_means(kind, rows, inner):
    model, inputs = kind(), toy_inputs(**rows)
    with torch.no_grad():
        check(model, compiled(model, inner=inner)(**inputs), inputs)


@pytest.mark.parametrize("kind", [Toy, Broken])
@pytest.mark.parametrize("dynamic", [None, True])
def test_other_lengths(kind, dynamic):
    model, graphs = kind(), []

    def inner(module, inputs):
        graphs.append(module)
        return module.forward

    fast = compiled(model, dynamic=dynamic, inner=inner)
    for visual in (20, 32, 60, 25):
        inputs = toy_inputs(visual)
        with torch.no_grad():
            check(model, fast(**inputs), inputs)
    decoders = [graph for graph in graphs if any("scaled_dot_product" in str(n.target) for n in graph.graph.nodes)]
    assert len(decoders) <= 2


@pytest.mark.parametrize("selector", [pairs, "framefusion"])
def test_memory_is_linear_in_the_length(selector):
    squares = []

    def inner(module, inputs):
        values = [node.meta.get("example_value") for node in module.graph.nodes]
        squares.extend(value for value in values if isinstance(value, torch.Tensor) and value.shape.count(1031) > 1)
        return module.forward

    compiled(Toy(), selector, inner=inner)(**toy_inputs(visual=1025))
    assert squares == []


def test_gradients_reach_what_was_merged():
    model, inputs = Toy(), toy_inputs()
    inputs["features"].requires_grad_()
    compiled(model, lambda ctx: (norms(ctx), torch.full_like(ctx.frame, 4)), inner="aot_eager")(**inputs)[
        0
    ].sum().backward()
    assert inputs["features"].grad.abs().sum(1).gt(0).all()


# What can't be proven


class Decoder(Toy):
    """Layers with something of their own between them."""

    def forward(self, ids, features, attention_mask=None):
        embeddings = self.embed(ids)
        embeddings = embeddings.masked_scatter((ids == 49).unsqueeze(-1).expand_as(embeddings), features)
        return self.head(self.decode(embeddings, *self.positions(embeddings, attention_mask)))


class LongSkip(Decoder):
    """What layer 0 gives is added again before layer 3."""

    def decode(self, hidden, *positions):
        hidden = first = self.layers[0](hidden, *positions)[0]
        for layer in self.layers[1:3]:
            hidden, _ = layer(hidden, *positions)
        return self.layers[3](hidden + first, *positions)[0]


class EmbeddingsAgain(Decoder):
    """Every layer adds the embeddings, of which each could hold a part of the stream."""

    def decode(self, hidden, *positions):
        embeddings = hidden
        for layer in self.layers:
            hidden = layer(hidden, *positions)[0] + embeddings
        return hidden


class Apart(Layer):
    """Returns what it adds and what it adds it to."""

    def forward(self, states, cos, sin, mask):
        hidden = states[0] + states[1]
        whole, key = super().forward(hidden, cos, sin, mask)
        return (whole - hidden, hidden), key


class Half(Layer):
    """Attention is added to the residual, what comes after it is returned beside it."""

    def forward(self, states, cos, sin, mask):
        output, residual = states
        hidden = output + residual
        query = self.q(hidden).view(*hidden.shape[:2], -1, self.head_dim).transpose(1, 2)
        key = self.k(hidden).view(*hidden.shape[:2], -1, self.head_dim).transpose(1, 2)
        out = self.attend(query, key, key, mask).transpose(1, 2).flatten(2)
        hidden = hidden + self.o(out)
        return (self.down(self.up(hidden).relu()), hidden), key


class NotYetAdded(Decoder):
    """A layer begins with the sum that the one before left undone."""

    def __init__(self, layer):
        super().__init__()
        self.layers = nn.ModuleList(layer(16, 4, 2, 8, False) for _ in range(4))

    def decode(self, hidden, *positions):
        states = torch.zeros_like(hidden), hidden
        for layer in self.layers:
            states, _ = layer(states, *positions)
        return states[0] + states[1]


class Streams(Decoder):
    """Two streams, mixed for each layer and written to by each (hyper-connections)."""

    def decode(self, hidden, *positions):
        streams = torch.stack([hidden, hidden], 2)
        for number, layer in enumerate(self.layers):
            entering = streams.mean(2)
            output = layer(entering, *positions)[0] - entering
            streams = streams * torch.tensor([[0.3], [0.8]]) + torch.stack([output, output * number], 2)
        return streams.mean(2)


class NoModules(Decoder):
    """The layers are in no list: the graph does not show where one begins."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = self.layers[:3]
        del self.layers

    def decode(self, hidden, *positions):
        for layer in (self.first, self.second, self.third):
            hidden, _ = layer(hidden, *positions)
        return hidden


@pytest.mark.parametrize(
    ("kind", "layer", "reason"),
    [
        (LongSkip, 1, "more than one stream of hidden states goes from decoder layer 1"),
        (EmbeddingsAgain, 1, "more than one stream"),
        (partial(NotYetAdded, Apart), 1, "more than one stream"),
        (partial(NotYetAdded, Apart), 0, "more than one stream"),
        (partial(NotYetAdded, Half), 1, "not known to be one tensor"),
        (Streams, 1, "not known to be one tensor .* several streams"),
        (NoModules, 1, "not known to be one tensor"),
    ],
)
def test_what_can_only_be_dropped(kind, layer, reason):
    compiled(kind(), norms, layer=layer)(**toy_inputs())
    assert sharp_compile.reports()[-1].pruned
    torch._dynamo.reset()
    for selector, name in ((pairs, "pairs"), ("framefusion", "framefusion")):
        with pytest.raises(CannotPrune, match=rf"selector='{name}' merges tokens, but .*{reason}"):
            compiled(kind(), selector, layer=layer)(**toy_inputs())


def test_a_linked_graph_declines_too():
    class Skip(Broken):
        def forward(self, ids, features):
            hidden = self.embed(ids).masked_scatter((ids == 49).unsqueeze(-1).expand(-1, -1, 16), features)
            torch._dynamo.graph_break()
            return self.head(LongSkip.decode(self, hidden, *self.positions(hidden, None)))

    with pytest.raises(CannotPrune, match="selector='pairs' merges tokens, but more than one stream"):
        compiled(Skip())(**toy_inputs())


# What a function may return


@pytest.mark.parametrize("kind", [Toy, Broken])
@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda ctx: (norms(ctx), ctx.frame.int()), r"a tensor \[1, 26\] of float32 and a tensor \[1, 26\] of int32"),
        (lambda ctx: (norms(ctx), ctx.frame[:, 1:]), r"and a tensor \[1, 25\] of int64"),
        (lambda ctx: (norms(ctx), None), "and NoneType"),
        (lambda ctx: (ctx.hidden, ctx.frame), r"a tensor \[1, 26, 16\] of float32 and"),
        (lambda ctx: (norms(ctx),) * 3, "it returned tuple"),
    ],
)
def test_other_results_are_refused(kind, result, got):
    with pytest.raises(ValueError, match=rf"selector must return a tensor \[B, S\] = \[1, 26\], .*{got}.*int64"):
        compiled(kind(), result)(**toy_inputs())


def test_an_error_of_the_function_is_told():
    def broken(ctx):
        raise ArithmeticError("of mine")

    with pytest.raises(Exception, match="of mine"):
        compiled(Toy(), broken)(**toy_inputs())

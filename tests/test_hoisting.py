"""Hoisting: the scoring layer computes keys and values for all tokens, and all else for the kept ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import sharp_compile
from sharp_compile.flops import flop_counter
from tests.toy import Layer, Toy, toy_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def run(model, inputs, **options):
    """The output of a pruned run, and its report."""
    torch._dynamo.reset()
    sharp_compile.reset()
    options = {"inner": "eager", "on_skip": "raise", "retention": 0.25} | options
    with torch.no_grad():
        output = torch.compile(model, backend="sharp", options=options)(**inputs)
    (report,) = sharp_compile.reports()
    assert report.pruned
    return output, report


def flops(model, inputs, **options):
    """Floating-point operations of the products of one pruned run."""
    counter = flop_counter()

    def counting(module, example_inputs):
        def call(*args):
            with counter:
                return module(*args)

        return call

    run(model, inputs, inner=counting, **options)
    return counter.get_total_flops()


def all_queries(ctx):
    """A rule that reads the queries of all positions, those of one row alone, and unrotated ones."""
    rows = ctx.is_visual.int().argmax(1, keepdim=True).expand(-1, 3)
    asked = ctx.queries(rows).sum((1, 2, 3))[:, None]
    return ctx.query.square().sum((1, 3)) + ctx.query_unrotated.sum((1, 3)) + asked


@pytest.mark.parametrize(("pad", "layer"), [(None, 0), ([0, 3], 2)])
@pytest.mark.parametrize("selector", ["sharp", "fastv", "visiondrop", "feather", "sparsevlm", "uniform", all_queries])
def test_the_same_numbers(pad, layer, selector):
    model, inputs = Toy(), toy_inputs(rows=len(pad) if pad else 1, pad=pad)
    options = {"layer": layer, "selector": selector}
    (actual, actual_keys), report = run(model, inputs, **options)
    (expected, expected_keys), plain = run(model, inputs, hoist=False, **options)
    assert report.hoisted and plain.hoisted is False
    assert report.kept.equal(plain.kept)
    assert_close(report.scores, plain.scores, equal_nan=True, **CLOSE)
    real = slice(None) if pad is None else inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(actual[real], expected[real], **CLOSE)
    for ours, theirs in zip(actual_keys[: layer + 1], expected_keys, strict=False):
        assert_close(ours, theirs, **CLOSE)
    assert [key.shape for key in actual_keys] == [key.shape for key in expected_keys]


@pytest.mark.parametrize("pad", [None, [0, 3]])
def test_the_flops_of_dropped_tokens_are_saved(pad):
    """Of the layer 1: the query and output projections, the attention rows and the MLP, nothing else."""
    rows = len(pad) if pad else 1
    model, inputs = Toy(), toy_inputs(visual=40, rows=rows, pad=pad)
    length = 46 + max(pad or [0])
    dropped = 30
    (_, report) = run(model, inputs, selector="uniform")
    assert (report.sequence_length, report.pruned_length) == (length, length - dropped)
    hidden, width = 16, 4 * 8
    of_token = 2 * hidden * width + 2 * width * hidden + 2 * 2 * hidden * 2 * hidden + 2 * 2 * length * width
    plain = flops(model, inputs, selector="uniform", hoist=False)
    assert plain - flops(model, inputs, selector="uniform") == rows * dropped * of_token


def test_scores_take_the_queries_of_their_rows_only():
    model, inputs = Toy(), toy_inputs(visual=40)
    none, one = (flops(model, inputs, selector=selector) for selector in ("uniform", "fastv"))
    # The query projection of one row, and its products with 46 keys; FastV's attention repeats no keys.
    assert one - none == 2 * 16 * 32 + 2 * 46 * 32


def test_nothing_dropped_is_the_unpruned_model():
    model, inputs = Toy(), toy_inputs(rows=2, pad=[0, 3])
    (actual, keys), report = run(model, inputs, retention=1.0)
    expected, expected_keys = model(**inputs)
    assert report.hoisted
    assert_close(actual, expected, **CLOSE)
    assert_close(keys, expected_keys, **CLOSE)


def test_the_first_of_several_cuts():
    model, inputs = Toy(layers=5), toy_inputs(rows=2, pad=[0, 3])
    stages = {"stages": [(0, 0.5), (2, 0.25)], "selector": "fastv"}
    torch._dynamo.reset()
    outputs = []
    for hoist in (True, False):
        sharp_compile.reset()
        options = stages | {"inner": "eager", "hoist": hoist}
        with torch.no_grad():
            outputs.append(torch.compile(model, backend="sharp", options=options)(**inputs)[0])
        (report,) = sharp_compile.reports()
        assert report.hoisted is hoist
        torch._dynamo.reset()
    real = inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(outputs[0][real], outputs[1][real], **CLOSE)


def test_gradients_flow_to_keys_of_dropped_tokens():
    model, inputs = Toy(), toy_inputs()
    grads = []
    for hoist in (True, False):
        torch._dynamo.reset()
        model.zero_grad()
        options = {"inner": "aot_eager", "retention": 0.25, "hoist": hoist, "selector": "fastv"}
        torch.compile(model, backend="sharp", options=options)(**inputs)[0][:, -1].sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert_close(*grads, **CLOSE)


class Mixes(Layer):
    """After its attention, each token gets a share of all others."""

    def forward(self, hidden, cos, sin, mask):
        hidden, key = super().forward(hidden, cos, sin, mask)
        share = F.softmax(hidden @ hidden.transpose(1, 2), dim=-1)
        return hidden + share @ hidden, key


class SumsUp(Layer):
    """After its attention, each token sees the sum of those up to it: not right for fewer tokens in any way."""

    def forward(self, hidden, cos, sin, mask):
        hidden, key = super().forward(hidden, cos, sin, mask)
        return hidden + hidden.softmax(1), key


class Drops(Layer):
    """Dropout inside the attention, of nothing."""

    def attend(self, q, k, v, mask):
        k, v = (each.repeat_interleave(2, dim=1) for each in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=1e-12)


class Returns(Toy):
    """Also returns what a layer hands on."""

    def forward(self, ids, features, attention_mask=None):
        found = []
        handle = self.layers[1].register_forward_hook(lambda module, args, output: found.append(output[0]))
        result = super().forward(ids, features, attention_mask)
        handle.remove()
        return (*result, found[0])


def with_layer(kind, number=1):
    model = Toy()
    layer = kind(16, 4, 2, 8, eager=False)
    layer.load_state_dict(model.layers[number].state_dict())
    model.layers[number] = layer
    return model


@pytest.mark.parametrize("kind", [Mixes, SumsUp, Drops])
@pytest.mark.parametrize("pad", [None, [0, 3]])
def test_a_layer_that_mixes_tokens_is_cut_at_its_end(kind, pad):
    model, inputs = with_layer(kind), toy_inputs(rows=len(pad) if pad else 1, pad=pad)
    (actual, _), report = run(model, inputs, selector="fastv")
    assert report.hoisted is False
    expected, _ = model(**inputs, cut={1: report.kept})
    real = slice(None) if pad is None else inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(actual[real], expected[real], **CLOSE)


@pytest.mark.parametrize("kind", [Mixes])
def test_another_layer_may_mix_tokens(kind):
    (actual, _), report = run(with_layer(kind, 2), toy_inputs(), selector="fastv")
    assert report.hoisted
    expected, _ = with_layer(kind, 2)(**toy_inputs(), cut={1: report.kept})
    assert_close(actual, expected, **CLOSE)


def test_attention_that_is_written_out_is_left_where_it_is():
    _, report = run(Toy(eager=True), toy_inputs())
    assert report.hoisted is False


def test_what_is_returned_keeps_its_length():
    model, inputs = Returns(), toy_inputs()
    (actual, _, after), report = run(model, inputs, selector="fastv")
    assert report.hoisted is False
    assert_close(after, model(**inputs)[2], **CLOSE)
    assert actual.shape[1] == report.pruned_length


class Fused(Layer):
    """One projection for queries, keys and values."""

    def __init__(self, *sizes, **more):
        super().__init__(*sizes, **more)
        self.qkv = nn.Linear(16, 4 * 8 + 2 * 2 * 8)

    def forward(self, hidden, cos, sin, mask):
        rows, length, _ = hidden.shape
        states = self.qkv(F.layer_norm(hidden, hidden.shape[-1:])).view(rows, length, 8, 8).transpose(1, 2)
        q, k, v = states.split([4, 2, 2], dim=1)
        out = self.attend(q, k, v, mask).transpose(1, 2).reshape(rows, length, 32)
        return hidden + self.o(out), k


def test_a_projection_of_all_three_is_computed_again_for_the_kept():
    torch.manual_seed(0)
    model, inputs = Toy(), toy_inputs(rows=2, pad=[0, 3])
    model.layers[1] = Fused(16, 4, 2, 8, eager=False)
    (actual, keys), report = run(model, inputs, selector="fastv")
    assert report.hoisted
    expected, expected_keys = model(**inputs, cut={1: report.kept})
    real = inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(actual[real], expected[real], **CLOSE)
    assert_close(keys[:2], expected_keys[:2], **CLOSE)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_the_option_is_a_bool(value):
    with pytest.raises(ValueError, match="option hoist="):
        torch.compile(Toy(), backend="sharp", options={"hoist": value})(**toy_inputs())

"""Operators of FlashAttention that stand whole in a graph: pruned as fused attention, and written back."""

import pytest
import torch
from sharp_compile.passes.analysis.attention import find_attention
from sharp_compile.passes.analysis.flash_attention import read_flash
from torch import nn
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from tests.flash_operators import DENSE, PACKED
from tests.graphs import Recorder, dynamo_graph
from tests.toy import Layer, Toy, toy_inputs


class FlashLayer(Layer):
    """Attends by FlashAttention's dense operator, as transformers calls it: with heads behind tokens."""

    arguments = (0.0, 8**-0.5, True, -1, -1, 0.0, None, False)

    def attend(self, q, k, v, mask):
        out = DENSE(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *self.arguments)
        return out[0].transpose(1, 2)


class BehindTokens(FlashLayer):
    """Has queries and keys as the operator takes them: in memory of their own."""

    def attend(self, q, k, v, mask):
        out = DENSE(*(each.transpose(1, 2).contiguous() for each in (q, k, v)), *self.arguments)
        return out[0].transpose(1, 2)


def toy(layer=FlashLayer, layers=4, **arguments):
    model = Toy()
    model.layers = nn.ModuleList(layer(16, 4, 2, 8, False) for _ in range(layers))
    return model.requires_grad_(False)


def compiled(model, **options):
    options = {"inner": "eager", "on_skip": "raise", "retention": 0.25} | options
    return torch.compile(model, backend="sharp", options=options)


def calls(recorder, target):
    return [
        node for module in recorder.modules for node in module.graph.nodes if node.target in (target, target.default)
    ]


@pytest.mark.parametrize("layer", [FlashLayer, pytest.param(BehindTokens, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "selector", ["sharp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fastv", "feather", "uniform"))]
)
@pytest.mark.parametrize("hoist", [True, False])
def test_pruned_equals_the_eager_model_pruned_by_hand(layer, selector, hoist):
    model, inputs = toy(layer), toy_inputs(rows=2)
    recorder = Recorder()
    actual, keys = compiled(model, inner=recorder, selector=selector, hoist=hoist)(**inputs)
    report = sharp_compile.reports()[-1]
    assert (report.pruned, report.kept_tokens, report.hoisted) == (True, 5, hoist)
    expected, expected_keys = model(**inputs, cut={1: report.kept})
    assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert_close(keys, expected_keys, atol=1e-5, rtol=1e-4)
    assert len(calls(recorder, DENSE)) == (3 if hoist else 4)


@pytest.mark.parametrize(
    "options",
    [
        {"stages": [(0, 0.5), (2, 0.25)], "selector": "fastv"},
        {"segment": {"frames": 1, "scope": "forward", "tokens_per_frame": 5}},
        {"selector": "framefusion"},
    ],
    ids=["stages", "forward segments", "merging"],
)
def test_pruned_equals_the_model_with_fused_attention(options):
    flash, plain, inputs = toy(), Toy().requires_grad_(False), toy_inputs(rows=2)
    flash.load_state_dict(plain.state_dict())
    options = options | ({} if "stages" in options else {"retention": 0.25})
    options = {"inner": "eager", "on_skip": "raise"} | options
    both = [torch.compile(model, backend="sharp", options=options)(**inputs)[0] for model in (flash, plain)]
    assert [report.pruned for report in sharp_compile.reports()] == [True, True]
    assert_close(*both, atol=1e-5, rtol=1e-4)


def test_lengths_are_symbols():
    model = toy()
    fast = torch.compile(model, backend="sharp", dynamic=True, options={"inner": "eager", "on_skip": "raise"})
    for visual in (20, 31):
        inputs = toy_inputs(visual=visual)
        actual, _ = fast(**inputs)
        (report,) = sharp_compile.reports()
        assert report.pruned
        assert_close(actual, model(**inputs, cut={1: report.kept})[0], atol=1e-5, rtol=1e-4)


class InTwoGraphs(Toy):
    """Dynamo breaks between the injection and the decoder."""

    def through_layers(self, hidden, attention_mask=None, cut=None):
        if cut is None:
            torch._dynamo.graph_break()
        return super().through_layers(hidden, attention_mask, cut)


def test_a_graph_after_the_injection():
    model, inputs = InTwoGraphs(), toy_inputs(rows=2)
    model.layers = nn.ModuleList(FlashLayer(16, 4, 2, 8, False) for _ in range(4))
    recorder = Recorder()
    actual, _ = compiled(model.requires_grad_(False), inner=recorder)(**inputs)
    report = sharp_compile.reports()[-1]
    assert report.pruned
    assert_close(actual, model(**inputs, cut={1: report.kept})[0], atol=1e-5, rtol=1e-4)
    assert len(calls(recorder, DENSE)) == 3


class Windowed(FlashLayer):
    arguments = (0.0, 8**-0.5, True, 4, 0, 0.0, None, False)


class Capped(FlashLayer):
    arguments = (0.0, 8**-0.5, True, -1, -1, 3.0, None, False)


class Dropping(FlashLayer):
    arguments = (0.1, 8**-0.5, True, -1, -1, 0.0, None, False)


class WithNormalizer(FlashLayer):
    def attend(self, q, k, v, mask):
        out, normalizer, _, _ = DENSE(*(each.transpose(1, 2) for each in (q, k, v)), *self.arguments)
        return (out * normalizer.unsqueeze(-1).sigmoid()).transpose(1, 2)


class Cached(FlashLayer):
    def attend(self, q, k, v, mask):
        k, v = (torch.cat([each[:, :, :3], each], 2) for each in (k, v))
        return super().attend(q, k, v, mask)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Windowed, "given window_size: that is not known to be right for fewer tokens; load the model with"),
        (Capped, "given softcap: that is"),
        (Dropping, "given dropout_p: that is"),
        (WithNormalizer, "gives more than its output"),
        (Cached, "29 keys from 26 positions"),
    ],
)
def test_declined(layer, reason):
    with pytest.raises(CannotPrune, match=rf"attends by flash_attn\._flash_attn_forward.*, which .*{reason}"):
        compiled(toy(layer))(**toy_inputs())


class PackedLayer(FlashLayer):
    """Attends by the operator of packed samples, as transformers calls it for one row."""

    arguments = (0.0, 8**-0.5, True)

    def forward(self, hidden, cos, sin, mask):
        self.begins = mask
        return super().forward(hidden, cos, sin, None)

    def attend(self, q, k, v, mask):
        q, k, v = (each.transpose(1, 2).reshape(-1, *each.shape[1:2], each.shape[3]) for each in (q, k, v))
        out = PACKED(q, k, v, self.begins, self.begins, len(q), len(q), *self.arguments)[0]
        return out.view(1, -1, *out.shape[1:]).transpose(1, 2)


class PackedToy(Toy):
    """Takes the places where its samples begin in place of a mask; pruned by hand, where they begin by then."""

    def positions(self, hidden, attention_mask):
        cos, sin, _ = super().positions(hidden, None)
        return cos, sin, attention_mask

    def through_layers(self, hidden, attention_mask=None, cut=None):
        cos, sin, begins = self.positions(hidden, attention_mask)
        keys = []
        for number, layer in enumerate(self.layers):
            hidden, key = layer(hidden, cos, sin, begins)
            keys.append(key)
            if cut is not None and number in cut:
                kept = cut[number][0]
                hidden, cos, sin = hidden[:, kept], cos[:, kept], sin[:, kept]
                begins = torch.tensor([(kept < begin).sum() for begin in begins], dtype=torch.int32)
        return self.head(hidden), keys


@pytest.mark.parametrize("selector", ["sharp", pytest.param("fastv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("hoist", [True, False])
def test_packed_samples(selector, hoist):
    """One row of two samples: pruned they are still two, by a dense mask; the layers before have the operator."""
    model = PackedToy()
    model.layers = nn.ModuleList(PackedLayer(16, 4, 2, 8, False) for _ in range(4))
    model.requires_grad_(False)
    inputs = toy_inputs() | {"attention_mask": torch.tensor([0, 15, 26], dtype=torch.int32)}
    recorder = Recorder()
    actual, keys = compiled(model, inner=recorder, selector=selector, hoist=hoist)(**inputs)
    report = sharp_compile.reports()[-1]
    assert (report.pruned, report.kept_tokens, report.hoisted) == (True, 5, hoist)
    expected, expected_keys = model(**inputs, cut={1: report.kept})
    assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert_close(keys, expected_keys, atol=1e-5, rtol=1e-4)
    assert len(calls(recorder, PACKED)) == (1 if hoist else 2)


class SeveralRows(PackedLayer):
    def attend(self, q, k, v, mask):
        shape = q.transpose(1, 2).shape
        return super().attend(q, k, v, mask).transpose(1, 2).reshape(shape).transpose(1, 2)


def test_several_rows_as_one_are_declined():
    model = PackedToy()
    model.layers = nn.ModuleList(SeveralRows(16, 4, 2, 8, False) for _ in range(3))
    inputs = toy_inputs(rows=2) | {"attention_mask": torch.tensor([0, 26, 52], dtype=torch.int32)}
    with pytest.raises(CannotPrune, match=r"by flash_attn\._flash_attn_varlen_forward.*, which is not known; load"):
        compiled(model.requires_grad_(False))(**inputs)


def test_what_an_operator_takes():
    """By position or by name, in the schema of any version; here torch's, of which only the fake part runs on a CPU."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, begins = torch.randn(6, 4, 8), torch.randn(6, 2, 8), torch.tensor([0, 2, 6], dtype=torch.int32)

    def attend(q, k, begins, window_size):
        return varlen_attn(q, k, k, begins, begins, 4, 4, scale=0.3, window_size=window_size, enable_gqa=True)

    for window, is_causal, others in [((-1, 0), True, ()), ((-1, -1), False, ()), ((2, 0), True, ("window_size",))]:
        torch.compiler.reset()
        with torch._subclasses.FakeTensorMode() as mode:
            module = dynamo_graph(attend, *(mode.from_tensor(each) for each in (q, k, begins)), window)
        (call,) = [call for node in module.graph.nodes if (call := read_flash(node)) is not None]
        assert (call.name, call.is_causal, call.others) == ("torch_attn::_varlen_attn", is_causal, others)
        assert (call.query.name, call.key.name, call.scale) == ("l_q_", "l_k_", 0.3)
        assert call.begins is not None
        (attention,) = find_attention(module.graph)
        assert (attention.causal, attention.token_axis) == (is_causal, -3)

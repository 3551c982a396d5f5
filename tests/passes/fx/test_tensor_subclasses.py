"""Tensors that wrap others in a graph: weights whose class says what a linear layer does with them."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import return_and_correct_aliasing

import sharp_compile
from tests.toy import Toy, toy_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


class Scaled(torch.Tensor):
    """A weight in int8 with a scale for each row.

    With ``rounded="tokens"`` a linear layer also rounds what comes in, by the largest of each token; with ``"all"`` by
    the largest of all tokens.
    """

    @staticmethod
    def __new__(cls, data, scale, rounded):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype, device=data.device)

    def __init__(self, data, scale, rounded):
        self.data_inside, self.scale, self.rounded = data, scale, rounded

    @classmethod
    def of(cls, weight, rounded):
        scale = weight.detach().abs().amax(1, keepdim=True) / 127
        return cls((weight.detach() / scale).round().to(torch.int8), scale, rounded)

    def __tensor_flatten__(self):
        return ["data_inside", "scale"], self.rounded

    @staticmethod
    def __tensor_unflatten__(inside, rounded, shape, stride):
        return Scaled(inside["data_inside"], inside["scale"], rounded)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            value, weight, bias = args
            if weight.rounded != "no":
                step = value.abs().amax(-1, keepdim=True) if weight.rounded == "tokens" else value.abs().max()
                step = step.clamp_min(1e-6)
                value = (value / step * 127).round() * step / 127
            return value @ weight.data_inside.to(value.dtype).t() * weight.scale.flatten() + bias
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            (weight,) = args
            inside = function(weight.data_inside), function(weight.scale)
            return return_and_correct_aliasing(function, args, kwargs or {}, Scaled(*inside, weight.rounded))
        raise NotImplementedError(function)


def quantised(model, rounded):
    for layer in model.layers:
        for module in layer.children():
            module.weight = nn.Parameter(Scaled.of(module.weight, rounded), requires_grad=False)
    return model


def pruned(model, inputs, inner="aot_eager", **options):
    options = {"inner": inner, "retention": 0.25, "on_skip": "raise"} | options
    with torch.no_grad():
        return torch.compile(model, backend="sharp", options=options)(**inputs)


@pytest.mark.parametrize(
    ("rounded", "selector", "inner"),
    [("no", "sharp", "aot_eager"), ("no", "feather", "eager"), ("tokens", "fastv", "aot_eager")],
)
def test_the_numbers_of_the_model_pruned_by_hand(rounded, selector, inner):
    model, inputs = quantised(Toy(layers=3), rounded), toy_inputs(rows=2, pad=[0, 3])
    actual, keys = pruned(model, inputs, inner, selector=selector)
    (report,) = sharp_compile.reports()
    assert report.pruned and report.hoisted
    with torch.no_grad():
        expected, expected_keys = model(**inputs, cut={1: report.kept})
    real = inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(actual[real], expected[real], **CLOSE)
    for ours, theirs in zip(keys[2:], expected_keys[2:], strict=True):
        assert_close(ours.movedim(2, 1)[real], theirs.movedim(2, 1)[real], **CLOSE)


def test_a_weight_as_wide_as_the_sequence_is_long():
    model, inputs = quantised(Toy(layers=3), "no"), toy_inputs(visual=11, text=5)
    actual, _ = pruned(model, inputs, "eager", selector="fastv")
    (report,) = sharp_compile.reports()
    assert report.sequence_length == model.embed.embedding_dim
    with torch.no_grad():
        assert_close(actual, model(**inputs, cut={1: report.kept})[0], **CLOSE)


def test_lengths_that_are_symbols():
    model = quantised(Toy(layers=3), "tokens")
    options = {"inner": "eager", "selector": "fastv", "on_skip": "raise"}
    fast = torch.compile(model, backend="sharp", options=options, dynamic=True)
    for visual in (20, 31):
        inputs = toy_inputs(visual=visual)
        with torch.no_grad():
            actual, _ = fast(**inputs)
            (report,) = sharp_compile.reports()
            assert_close(actual, model(**inputs, cut={1: report.kept})[0], **CLOSE)


def test_a_scale_of_all_tokens_would_be_another_with_fewer():
    with pytest.raises(sharp_compile.CannotPrune, match=r"aten\.max.* runs over tokens"):
        pruned(quantised(Toy(), "all"), toy_inputs())


def test_layers_differ_by_more_than_their_shapes():
    """What is proven for one layer says nothing of a layer whose weights look the same and act otherwise."""
    model = quantised(Toy(), "no")
    last = model.layers[-1]
    last.up.weight = nn.Parameter(Scaled.of(Toy().layers[-1].up.weight, "all"), requires_grad=False)
    with pytest.raises(sharp_compile.CannotPrune, match=r"aten\.max.* runs over tokens"):
        pruned(model, toy_inputs())

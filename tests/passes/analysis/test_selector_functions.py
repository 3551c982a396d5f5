"""Selectors that look at values are named, and what a selector writes into is not the model's."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import sharp_compile
from tests.toy import Toy, toy_inputs


def branches(ctx):
    score = ctx.hidden.norm(dim=-1)
    return -score if score.mean() > 0 else score


def asks(ctx):
    return ctx.hidden.norm(dim=-1) * ctx.hidden.mean().item()


def finds(ctx):
    score = torch.zeros(ctx.is_visual.shape)
    score[ctx.is_visual.nonzero(as_tuple=True)] = 1.0
    return score


def indexes(ctx):
    score = torch.zeros(ctx.is_visual.shape)
    score[ctx.is_visual] = ctx.hidden[ctx.is_visual].norm(dim=-1)
    return score


def loops(ctx):
    score = torch.zeros(ctx.is_visual.shape)
    for frame in range(int(ctx.frame.max()) + 1):
        score = score + (ctx.frame == frame) * frame
    return score


class Module(nn.Module):
    def forward(self, ctx):
        return ctx.hidden.norm(dim=-1) * bool(ctx.is_padding.any())


class Split(Toy):
    """Its decoder is in another graph than the injection."""

    def positions(self, hidden, attention_mask):
        torch._dynamo.graph_break()
        return super().positions(hidden, attention_mask)


def compiled(model, selector, **more):
    options = {"inner": "eager", "selector": selector, "retention": 0.25} | more
    return torch.compile(model, backend="sharp", options=options)


@pytest.mark.parametrize("make", [Toy, Split])
@pytest.mark.parametrize("selector", [branches, asks, finds, indexes, loops, Module()])
def test_a_selector_that_looks_at_values_is_named(make, selector):
    name = re.escape(repr(getattr(selector, "__name__", "Module")))
    message = rf"selector {name} looks at the values of tensors at {re.escape(__file__)}:\d+ \(.*\): it can't be"
    with pytest.raises(ValueError, match=message):
        compiled(make(), selector)(**toy_inputs())


@pytest.mark.parametrize("make", [Toy, Split])
def test_a_selector_that_fails_is_named(make):
    def fails(ctx):
        return ctx.hidden @ ctx.hidden

    with pytest.raises(ValueError, match=rf"selector 'fails' failed at {re.escape(__file__)}:\d+ .*RuntimeError"):
        compiled(make(), fails)(**toy_inputs())


def writes_into_hidden(ctx):
    ctx.hidden.mul_(2)
    return ctx.hidden.norm(dim=-1)


def writes_into_a_view(ctx):
    ctx.hidden[:, 3:5].zero_()
    ctx.hidden.data.add_(1)
    return ctx.hidden.norm(dim=-1)


def writes_into_keys(ctx):
    ctx.grouped_key[..., 0] = 0
    ctx.grouped_key_unrotated.neg_()
    ctx.query.add_(1)
    return ctx.hidden.norm(dim=-1)


def writes_into_kinds(ctx):
    ctx.is_visual[:, 3] = False
    ctx.is_padding.logical_not_()
    ctx.frame.fill_(0)
    return ctx.hidden.norm(dim=-1)


def writes_into_the_mask(ctx):
    if ctx.mask is not None:
        ctx.mask.zero_()
    return ctx.hidden.norm(dim=-1)


@pytest.mark.parametrize("make", [Toy, Split])
@pytest.mark.parametrize(
    "selector", [writes_into_hidden, writes_into_a_view, writes_into_keys, writes_into_kinds, writes_into_the_mask]
)
def test_what_a_selector_writes_into_is_not_the_models(make, selector):
    model, inputs = make(), toy_inputs(rows=2, pad=[0, 3])
    logits, _ = compiled(model, selector, on_skip="raise")(**inputs)
    report = next(report for report in sharp_compile.reports() if report.pruned)
    real = inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(logits[real], model(**inputs, cut={1: report.kept})[0][real], atol=1e-5, rtol=1e-4)
    assert (inputs["ids"] == 49).equal(report.frame >= 0)


def test_a_selector_may_pad_with_symbolic_sizes():
    def shifts(ctx):
        return F.pad(ctx.hidden.norm(dim=-1), (1, 0))[:, :-1]

    options = {"inner": "eager", "selector": shifts, "retention": 0.25, "on_skip": "raise"}
    logits, _ = torch.compile(Toy(), backend="sharp", options=options, dynamic=True)(**toy_inputs())
    assert logits.shape[1] == 11

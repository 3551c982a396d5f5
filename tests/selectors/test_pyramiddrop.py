"""PyramidDrop: FastV's score, asked for at each stage."""

import torch
from torch.testing import assert_close

import sharp_compile
from tests.selectors.test_selectors import context, rule
from tests.toy import Toy, toy_inputs


def test_it_is_the_attention_of_the_last_position():
    ctx = context()
    expected = (ctx.query[:, :, -1:] @ ctx.key.transpose(-1, -2) / 2).softmax(-1).mean(1)[:, 0]
    assert_close(rule(selector="pyramiddrop")(ctx), expected)


def test_each_stage_asks_for_what_the_one_before_left():
    """A token that was dropped has no later chance, so what remains after both stages is not the best of the second."""
    stages = [(0, 0.5), (1, 0.25)]
    inputs = toy_inputs(visual=20)
    kept = {}
    for where in ({"stages": stages}, {"layer": 0, "retention": 0.5}, {"layer": 1, "retention": 0.25}):
        torch._dynamo.reset()
        sharp_compile.reset()
        options = where | {"selector": "pyramiddrop", "inner": "eager", "on_skip": "raise"}
        torch.compile(Toy(), backend="sharp", options=options)(**inputs)
        (report,) = sharp_compile.reports()
        kept[str(where)] = set(report.kept[0].tolist())
    both, first, second = kept.values()
    assert len(both) == len(second) == len(first) - 5
    assert both < first
    assert both != second

"""Where the sequence is cut: as asked for, or at the next layer that serves."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from tests.toy import Layer, Toy, pruned, toy_inputs


class Mixer(nn.Module):
    """A decoder layer without attention."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 16)

    def forward(self, hidden, cos, sin, mask):
        return hidden + self.up(hidden).tanh(), hidden


class Hybrid(Toy):
    """Attention in some layers only."""

    def __init__(self, kinds):
        super().__init__()
        self.layers = nn.ModuleList(Layer(16, 4, 2, 8, False) if kind == "a" else Mixer() for kind in kinds)


class Again(Toy):
    """Adds the features again after layer 2."""

    def forward(self, ids, features, attention_mask=None, cut=None):
        hidden = self.embed(ids)
        where = (ids == 49).unsqueeze(-1)
        again = torch.zeros_like(hidden).masked_scatter(where.expand_as(hidden), features)
        hidden = hidden.masked_scatter(where.expand_as(hidden), features)
        cos, sin, mask = self.positions(hidden, attention_mask)
        for number, layer in enumerate(self.layers):
            hidden, _ = layer(hidden, cos, sin, mask)
            if number == 2:
                hidden = hidden + again
            if cut is not None and number in cut:
                hidden, cos, sin, mask = pruned(cut[number], hidden, cos, sin, mask)
        return self.head(hidden)


def check(model, layer, moved_to, selector, remark=""):
    options = {"inner": "eager", "on_skip": "raise", "retention": 0.25, "layer": layer, "selector": selector}
    actual = torch.compile(model, backend="sharp", options=options)(**toy_inputs())
    (report,) = sharp_compile.reports()
    assert (report.layer, report.num_layers) == (moved_to, len(model.layers))
    assert remark in report.reason
    assert ("moved" in report.reason) == (layer != moved_to)
    expected = model(**toy_inputs(), cut={moved_to: report.kept})
    actual, expected = (value[0] if isinstance(value, tuple) else value for value in (actual, expected))
    assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kinds", "layer", "moved_to", "selector"),
    [
        ("amama", 0, 0, "fastv"),
        ("amama", 1, 2, "fastv"),
        ("amama", 1, 1, "uniform"),
        ("mmama", 0, 2, "uniform"),
        ("mmama", 1, 2, "sharp"),
        ("mamam", 3, 3, "uniform"),
    ],
)
def test_hybrid_decoders(kinds, layer, moved_to, selector):
    check(Hybrid(kinds), layer, moved_to, selector, "the next that has attention" if layer != moved_to else "")


def test_no_attention_is_left():
    with pytest.raises(CannotPrune, match="no decoder layer from layer=1 on has attention"):
        check(Hybrid("ammm"), 1, 1, "fastv")
    torch._dynamo.reset()
    with pytest.raises(CannotPrune, match=r"layer=1 moved to 3.*leaves no later layer"):
        check(Hybrid("amma"), 1, 1, "fastv")


@pytest.mark.parametrize(("layer", "moved_to"), [(0, 2), (2, 2), (3, 3)])
def test_features_that_are_added_again(layer, moved_to):
    model = Again(layers=5)
    check(model, layer, moved_to, "uniform", "visual features are added again" if layer != moved_to else "")


def test_stages_that_meet():
    options = {"inner": "eager", "on_skip": "raise", "stages": [(0, 0.5), (1, 0.25)]}
    with pytest.raises(CannotPrune, match="meet"):
        torch.compile(Again(layers=5), backend="sharp", options=options)(**toy_inputs())

"""Visual tokens that the caller tells of."""

import pytest
import torch
from torch.testing import assert_close

import sharp_compile
from tests.toy import Toy, toy_inputs


class Decoder(Toy):
    """A decoder alone, which takes embeddings."""

    def forward(self, hidden, cut=None):
        return self.through_layers(hidden, cut=cut)[0]


def embeddings(model):
    ids = toy_inputs()["ids"]
    return model.embed(ids).detach(), ids == 49


def test_a_decoder_alone_is_pruned_where_it_is_told():
    model = Decoder()
    hidden, is_visual = embeddings(model)
    fast = torch.compile(model, backend="sharp", options={"inner": "eager", "retention": 0.25})
    assert_close(fast(hidden), model(hidden))
    with sharp_compile.visual_tokens(is_visual):
        actual = fast(hidden)
        assert_close(fast(hidden[:, :9]), model(hidden[:, :9]))  # of another length: nothing is said of it
    (report,) = [report for report in sharp_compile.reports() if report.pruned]
    assert (report.visual_tokens, report.kept_tokens) == (20, 5)
    assert_close(actual, model(hidden, cut={1: report.kept}), atol=1e-5, rtol=1e-4)
    assert_close(fast(hidden), model(hidden))


def test_nothing_is_visual():
    model = Decoder()
    hidden, is_visual = embeddings(model)
    fast = torch.compile(model, backend="sharp", options={"inner": "eager", "on_skip": "raise"})
    with sharp_compile.visual_tokens(torch.zeros_like(is_visual)):
        assert_close(fast(hidden), model(hidden))


@pytest.mark.parametrize("value", [torch.zeros(3, dtype=torch.bool), torch.zeros(1, 3), torch.zeros(1, 3, 1).bool()])
def test_what_is_no_mask_is_refused(value):
    with pytest.raises(ValueError, match="is_visual must be bool"), sharp_compile.visual_tokens(value):
        pass

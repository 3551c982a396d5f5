"""Features that are not numbers: as many tokens are kept as ever, all text among them, and the answer tells."""

import itertools

import pytest
import torch

import sharp_compile
from sharp_compile.selector_registry import selector_names
from tests.toy import Toy, toy_inputs

BAD = [float("nan"), float("inf"), -float("inf")]
WHERE = [slice(None), 7]


@pytest.mark.parametrize("selector", selector_names())
def test_the_kept_tokens_are_a_selection(selector):
    inputs = toy_inputs(rows=2, pad=[0, 3])
    is_text = (inputs["ids"] != 49) & (inputs["attention_mask"] == 1)
    model, unpruned = Toy(), Toy()
    model.compile(backend="sharp", options={"inner": "eager", "retention": 0.25, "selector": selector})
    for bad, where in itertools.product(BAD, WHERE):
        features = inputs["features"].clone()
        features[where] = bad
        with torch.no_grad():
            logits, _ = model(**inputs | {"features": features})
            expected, _ = unpruned(**inputs | {"features": features})
        assert torch.equal(logits[:, -1].isnan(), expected[:, -1].isnan()) and expected[:, -1].isnan().any()
        (report,) = sharp_compile.reports()
        assert report.pruned and logits.shape[1] == report.kept.shape[1]
        for kept, text in zip(report.kept, is_text, strict=True):
            assert torch.equal(kept, kept.unique()), "ascending, none twice"
            assert torch.isin(text.nonzero()[:, 0], kept).all(), "all text"
            assert kept.min() >= 0 and kept.max() < is_text.shape[1]

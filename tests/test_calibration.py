"""Content-free calibration: what is measured, and that it is what the pruned model then takes off."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

import sharp_compile
from tests import oracle
from tests.architectures import ARCHITECTURES, shared_model, visual_mask
from tests.support import forward
from tests.toy import Toy, toy_inputs


def test_the_profile_is_the_attention_of_the_text(room_for_many_graphs):
    model = shared_model("llava_onevision", layers=4)
    inputs = ARCHITECTURES["llava_onevision"].inputs(model)
    black = inputs | {"pixel_values_videos": torch.zeros_like(inputs["pixel_values_videos"])}
    calibration = sharp_compile.calibrate(deepcopy(model), layer=2, **black)
    is_visual = visual_mask(model, inputs)
    seen = {}

    def text_rows(tokens, counts):
        seen["scores"] = oracle.text_attention(tokens)
        return torch.zeros(tokens.visual.shape)

    with oracle.prune(model, layer=2, selector=text_rows):
        forward(model, black)
    assert list(calibration.profiles) == [int(is_visual.sum())]
    assert_close(calibration.profiles[int(is_visual.sum())], seen["scores"][is_visual], atol=1e-6, rtol=1e-4)


def test_what_was_measured_is_taken_off():
    model, inputs = Toy(), toy_inputs()
    blank = inputs | {"features": torch.zeros_like(inputs["features"])}
    calibration = sharp_compile.calibrate(model, blank, layer=1)
    scores = []
    for debias in (None, calibration, {"profile": calibration, "form": "ratio"}):
        torch._dynamo.reset()
        sharp_compile.reset()
        options = {"segment": None, "debias": debias, "dedup": None, "inner": "eager"}
        with torch.no_grad():
            torch.compile(model, backend="sharp", options=options)(**inputs)
        (report,) = [report for report in sharp_compile.reports() if report.pruned]
        scores.append(report.scores[inputs["ids"] == 49])
    plain, subtracted, ratio = scores
    assert_close(subtracted, plain - calibration.profiles[20], atol=1e-6, rtol=1e-4)
    assert_close(ratio, plain / calibration.profiles[20], atol=1e-4, rtol=1e-3)


def test_several_layouts():
    model = Toy()
    calibration = sharp_compile.calibrate(model, *(toy_inputs(visual=visual) for visual in (20, 12, 31)))
    assert sorted(calibration.profiles) == [12, 20, 31]
    assert all(profile.shape == (visual,) for visual, profile in calibration.profiles.items())
    alone = sharp_compile.calibrate(model, toy_inputs(visual=12))
    assert_close(alone.profiles[12], calibration.profiles[12])


def test_one_compiled_graph_serves_other_lengths():
    model = Toy()
    calibration = sharp_compile.calibrate(model, toy_inputs(visual=20))
    torch._dynamo.reset()
    sharp_compile.reset()
    fast = torch.compile(model, backend="sharp", options={"debias": calibration, "inner": "eager"})
    for visual in (20, 30, 40, 25, 33):
        inputs = toy_inputs(visual=visual)
        logits, _ = fast(**inputs)
        kept = [r.kept for r in sharp_compile.reports() if r.kept is not None and r.kept.shape[1] == logits.shape[1]]
        assert_close(logits, model(**inputs, cut={1: kept[-1]})[0], atol=1e-5, rtol=1e-4)
    assert len(sharp_compile.reports()) <= 2


def test_what_can_not_be_measured():
    with pytest.raises(ValueError, match="needs the inputs of a forward call"):
        sharp_compile.calibrate(Toy())
    with pytest.raises(sharp_compile.CannotPrune, match="leaves no later layer"):
        sharp_compile.calibrate(Toy(layers=2), toy_inputs(), layer=1)

"""Where a graph shows its frames, and where only the user can."""

from copy import deepcopy

import pytest
import torch

import sharp_compile
from tests.architectures import ARCHITECTURES, shared_model, visual_mask
from tests.toy import Toy, toy_inputs


def frames_of(call, dynamic=None, **inputs):
    """The frames ``[B, S]`` that a user's function is shown in the first graph that is pruned."""
    torch._dynamo.reset()
    sharp_compile.reset()
    options = {"selector": lambda ctx: ctx.frame, "inner": "eager"}
    fast = torch.compile(call, backend="sharp", dynamic=dynamic, options=options)
    with torch.no_grad():
        fast(**inputs)
    scores = [report.scores for report in sharp_compile.reports() if report.pruned]
    return scores[-1].nan_to_num(nan=-1).long()


def counted(is_visual, tokens):
    """Frames of so many tokens, one after the other."""
    return ((is_visual.cumsum(1) - 1) // tokens).where(is_visual, -1)


def test_features_of_three_axes_show_frames():
    model, inputs = Toy(), toy_inputs(visual=12, rows=2, pad=[0, 3])
    inputs["features"] = inputs["features"].unflatten(0, (6, 4))
    assert frames_of(model, **inputs).equal(counted(inputs["ids"] == 49, 4))


def test_text_between_visual_tokens_ends_a_frame():
    model, inputs = Toy(), toy_inputs(visual=12)
    inputs["ids"][0, 6] = 7
    inputs["ids"][0, -1] = 49
    frame = frames_of(model, **inputs)[0]
    assert frame.tolist() == [-1, -1, 0, 0, 0, 0, -1, *[1] * 7, -1, -1, -1, 2]


class Seeing(torch.nn.Module):
    """Features from pictures, in the graph of the decoder."""

    def __init__(self, closing):
        super().__init__()
        self.decoder, self.tower, self.closing = Toy(), torch.nn.Conv2d(12, 16, 1), closing

    def forward(self, ids, pixels):
        videos, pictures = pixels.shape[:2]
        features = self.tower(pixels.flatten(0, 1)).flatten(2).mT.reshape(videos * pictures, -1, 16)
        features = features.reshape(videos, -1, 16)
        if self.closing:
            features = torch.cat([features, features[:, :1]], dim=1)
        return self.decoder(ids, features.flatten(0, 1))


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_pictures_show_frames(closing, dynamic):
    ids = toy_inputs(visual=3 * 4 + closing, rows=2)["ids"]
    frame = frames_of(Seeing(closing), dynamic, ids=ids, pixels=torch.randn(2, 3, 12, 2, 2))
    assert frame.equal(counted(ids == 49, 4).clamp_max(2))


# A bare forward of Qwen2-VL injects in one graph and decodes in another; Qwen2.5-VL shares its positions.
@pytest.mark.parametrize(
    "name, how",
    [
        *(pytest.param("qwen2_vl", how, marks=pytest.mark.slow) for how in ("forward", "generate")),
        ("internvl", "forward"),
    ],
)
def test_models_that_show_frames(name, how, room_for_many_graphs):
    model = deepcopy(shared_model(name, layers=4))
    architecture = ARCHITECTURES[name]
    inputs = architecture.inputs(model, batch=2, pad=[0, 3])
    if how == "forward":
        actual = frames_of(model, **inputs)
    else:
        actual = frames_of(lambda **inputs: model.generate(**inputs, max_new_tokens=1, do_sample=False), **inputs)
    assert actual.equal(counted(visual_mask(model, inputs), architecture.tokens_per_block))

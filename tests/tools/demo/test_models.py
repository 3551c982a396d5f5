"""The models that are built here: real processors, and a prompt that says where the clip is."""

import importlib.util

import numpy as np
import pytest

from sharp_compile.tools.demo.video import Clip

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("transformers' video processors need torchvision", allow_module_level=True)

from sharp_compile.tools.demo import models

pytestmark = pytest.mark.torchvision


@pytest.fixture(autouse=True)
def one_layer(monkeypatch):
    monkeypatch.setitem(models.DECODER, "num_hidden_layers", 1)


def clip(frames):
    """A black video of 3 x 4 shape, six frames a second."""
    numbers = tuple(range(len(frames)))
    return Clip(np.stack(frames), numbers, len(numbers), 6.0)


def black():
    return np.zeros((360, 480, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_visual_token_has_its_place_in_the_prompt(count):
    for source in models.built_in():
        case = models.prepare(source, clip([black()] * count))
        positions = case.visual.tolist()
        assert positions == list(range(positions[0], positions[0] + len(positions))), "in one piece"
        assert positions[0] > 0 and positions[-1] < case.sequence_length - 1, "with text on both sides"
        assert case.grid is not None
        assert case.grid.times == (count if source.name == "LLaVA-OneVision" else -(-count // 2))
        assert len(positions) - case.grid.cells == (source.name == "LLaVA-OneVision")


def test_the_processors_put_a_bright_spot_into_its_cell():
    place = (1, 0.6, 0.3)
    frames = [black() for _ in range(4)]
    y, x = int(place[1] * 360), int(place[2] * 480)
    for frame in frames[2 * place[0] : 2 * place[0] + 2]:
        frame[y - 2 : y + 3, x - 2 : x + 3] = 255
    _, qwen = models.built_in()
    case = models.prepare(qwen, clip(frames))
    # Four patches, which the vision tower merges, follow each other; the spot is in those that vary.
    patches = case.inputs["pixel_values_videos"].float()
    tokens = patches.std(dim=1).reshape(-1, 4).amax(dim=1).numpy()
    time, row, column = np.unravel_index(case.grid.spread(tokens).argmax(), case.grid.spread(tokens).shape)
    assert (time, row, column) == (
        place[0],
        int(place[1] * case.grid.rows),
        int(place[2] * case.grid.columns),
    )


def test_the_weights_are_the_same_ones_each_time():
    first, second = (next(models.built_in()).load()[0] for _ in range(2))
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert ours.equal(theirs)

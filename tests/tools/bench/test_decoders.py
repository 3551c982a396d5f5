"""Decoders of real shapes, scaled and whole."""

import pytest
import torch

from sharp_compile.tools.bench import BenchError
from sharp_compile.tools.bench.decoders import SHAPES, Setup, build, inputs
from sharp_compile.tools.bench.vision import TOKENS_OF_FRAME, TowerShape


def test_scaling_keeps_the_proportions():
    whole = SHAPES["qwen2-7b"]
    half = whole.scaled(1792)
    assert (half.hidden_size, half.intermediate_size, half.num_hidden_layers) == (1792, 9472, 28)
    assert (half.num_attention_heads, half.num_key_value_heads) == (14, 2)
    # 4 heads have no group of 7: one key head for all of them is nearest.
    assert (whole.scaled(512).num_attention_heads, whole.scaled(512).num_key_value_heads) == (4, 1)
    assert whole.scaled(3584) == whole


@pytest.mark.parametrize("width", [0, 100, 3585])
def test_a_width_without_whole_heads_is_refused(width):
    with pytest.raises(BenchError, match=f"--width {width}: must be a multiple of the width of a head, 128"):
        SHAPES["qwen2-7b"].scaled(width)


@pytest.mark.parametrize("name, billions", [("qwen2-0.5b", 0.6), ("qwen2-7b", 7.6), ("qwen2.5-72b", 72.7)])
def test_whole_models_have_their_parameters(name, billions):
    model = build(Setup(SHAPES[name], SHAPES[name].num_hidden_layers, torch.bfloat16), "meta")
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert count == pytest.approx(billions, rel=0.06)


def test_a_prompt_has_the_visual_tokens_that_were_asked_for():
    setup = Setup(SHAPES["qwen2-7b"].scaled(128), 2, torch.float32)
    model, given = build(setup, "cpu"), inputs(setup, 40, "cpu")
    assert given["is_visual"].sum() == len(given["video"]) == 40
    assert not given["is_visual"][0, -1]
    with torch.no_grad():
        logits, cache = model(**given)
        assert cache.get_seq_length() == given["embeddings"].shape[1]
        mask = torch.ones(1, given["embeddings"].shape[1] + 1, dtype=torch.int64)
        assert model(given["embeddings"][:, -1:], mask, past_key_values=cache)[0].shape == logits.shape


def test_a_tower_gives_the_tokens_of_its_frames():
    setup = Setup(SHAPES["qwen2-7b"].scaled(128), 2, torch.float32, TowerShape(1, 1), mask=False)
    model, given = build(setup, "cpu"), inputs(setup, 3 * TOKENS_OF_FRAME, "cpu")
    assert given["attention_mask"] is None
    with torch.no_grad():
        assert model.tower(given["video"]).shape == (3 * TOKENS_OF_FRAME, 128)
        assert model(**given)[1].get_seq_length() == given["embeddings"].shape[1]
    with pytest.raises(BenchError, match="--tokens 100: must be a multiple of 196, the tokens of a frame"):
        inputs(setup, 100, "cpu")


def test_a_tower_has_its_parameters_and_is_scaled():
    setup = Setup(SHAPES["qwen2-7b"].scaled(128), 2, torch.bfloat16, TowerShape())
    encoder = build(setup, "meta").tower.encoder
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(412, rel=0.01)
    small = TowerShape().scaled(1 / 7, 6 / 28)
    assert (small.num_hidden_layers, small.hidden_size, small.intermediate_size) == (6, 144, 538)

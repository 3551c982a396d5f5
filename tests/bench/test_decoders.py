"""Decoders of real shapes, scaled and whole."""

import pytest
import torch

from sharp_compile.bench import BenchError
from sharp_compile.bench.decoders import SHAPES, build, inputs


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
    model = build(SHAPES[name], None, torch.bfloat16, "meta")
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert count == pytest.approx(billions, rel=0.06)


def test_a_prompt_has_the_visual_tokens_that_were_asked_for():
    shape = SHAPES["qwen2-7b"].scaled(128)
    model, given = build(shape, 2, torch.float32, "cpu"), inputs(shape, 40, torch.float32, "cpu")
    assert given["is_visual"].sum() == len(given["features"]) == 40
    assert not given["is_visual"][0, -1]
    with torch.no_grad():
        logits, cache = model(**given)
        assert cache.get_seq_length() == given["embeddings"].shape[1]
        mask = torch.ones(1, given["embeddings"].shape[1] + 1, dtype=torch.int64)
        assert model(given["embeddings"][:, -1:], mask, past_key_values=cache)[0].shape == logits.shape

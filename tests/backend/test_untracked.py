"""Prompts of which no graph shows whether they have visual tokens: it is said once what tells them."""

import warnings

import pytest
import torch
from torch.testing import assert_close

import sharp_compile
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.backend.test_cross_graph import Broken
from tests.test_visual_annotation import Decoder
from tests.toy import toy_inputs

OPTIONS = {"inner": "eager", "retention": 0.25, "selector": "uniform", "on_skip": "raise"}


def said_of(call, *args, **kwargs):
    """What is said of a call: the texts of our warnings."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        call(*args, **kwargs)
    return [str(each.message) for each in caught if "unpruned" in str(each.message)]


def compiled(model):
    return torch.compile(model, backend="sharp", options=OPTIONS)


def test_a_prompt_of_embeddings_is_said_once():
    fast, hidden = compiled(Decoder()), torch.randn(1, 26, 16)
    (text,) = said_of(fast, hidden)
    assert "comes as embeddings" in text and "sharp_compile.visual_tokens" in text
    assert said_of(fast, hidden + 1) == []
    assert said_of(fast, hidden[:, :20]) == []


def test_a_step_of_decoding_is_no_prompt():
    assert said_of(compiled(Decoder()), torch.randn(1, 1, 16)) == []


def test_who_told_that_nothing_is_visual_is_not_told():
    fast = compiled(Decoder())
    with sharp_compile.visual_tokens(torch.zeros(1, 26, dtype=torch.bool)):
        assert said_of(fast, torch.randn(1, 26, 16)) == []


def test_text_whose_embeddings_are_another_graphs():
    assert said_of(compiled(Broken()), toy_inputs()["ids"]) == []


@torch._dynamo.disable
def put_eagerly(hidden, mask, features):
    hidden[mask] = features
    return hidden


class Eager(Broken):
    def forward(self, ids, features):
        self.between = lambda hidden: put_eagerly(hidden, ids == 49, features)
        return super().forward(ids)


def test_features_that_are_put_in_eagerly():
    model, inputs = Eager(), toy_inputs()
    (text,) = said_of(compiled(model), **inputs)
    assert "injected by code that Dynamo ran eagerly" in text
    assert not any(report.pruned for report in sharp_compile.reports())


@pytest.mark.parametrize("generates", [False, True])
@pytest.mark.parametrize("embeddings", [False, True])
def test_a_model_of_transformers(embeddings, generates):
    """Called with text it has nothing to say; with embeddings it has, and both give the stock model's answer."""
    from copy import deepcopy

    stock = shared_model("llava_onevision")
    ids = ALL_ARCHITECTURES["llava_onevision"].inputs(stock)["input_ids"].clamp(max=50)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if embeddings:
        inputs["inputs_embeds"] = stock.get_input_embeddings()(inputs.pop("input_ids")).detach()
    model = deepcopy(stock)
    model.compile(backend="sharp", options=OPTIONS)
    if generates:
        texts = said_of(model.generate, **inputs, max_new_tokens=2, do_sample=False)
    else:
        texts = said_of(model, **inputs)
        with torch.no_grad():
            assert_close(model(**inputs).logits, stock(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert len(texts) == embeddings


def test_pixels_that_are_read_by_cross_attention():
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e4}
    text = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "pad_token_id": 0}
    vision = {"hidden_size": 32, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1}
    vision |= {"intermediate_size": 64, "image_size": 28, "patch_size": 14, "max_num_tiles": 1}
    config = MllamaConfig(
        vision_config=vision
        | {"vision_output_dim": 64, "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        text_config=text
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope, "cross_attention_layers": [1]},
        image_token_index=199,
    )
    torch.manual_seed(0)
    model = MllamaForConditionalGeneration(config).eval()
    ids = torch.arange(10, 22)[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 1, 1, 3, 28, 28),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(1, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, 12, 1, 1, dtype=torch.long),
    }
    model.compile(backend="sharp", options=OPTIONS)
    (text,) = said_of(model, **inputs)
    assert "cross-attention" in text

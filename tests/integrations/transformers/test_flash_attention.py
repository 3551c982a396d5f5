"""Language models that were loaded with FlashAttention: switched by `sharp_compile.compile`, named by reasons.

Its packages need a GPU: a stand-in breaks the graph, as they do, and attends by SDPA.
"""

import warnings
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

import sharp_compile
from sharp_compile import CannotPrune
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.flash_operators import DENSE
from tests.support import TOLERANCE, forward, the_pruned_graph

STAND_IN, WHOLE = "kernels-community/flash-stand-in", "kernels-community/flash-whole"
NAMES = ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "paged|flash_attention_2"]
LOADED = r"the language model was loaded with attn_implementation='{}', whose kernels"


def breaking(module, query, key, value, attention_mask, **kwargs):
    torch._dynamo.graph_break()
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def whole(module, query, key, value, attention_mask, scaling, **kwargs):
    tokens_first = (each.transpose(1, 2) for each in (query, key, value))
    return DENSE(*tokens_first, 0.0, scaling, True, -1, -1, 0.0, None, False)[0], None


AttentionInterface.register(WHOLE, whole)
AttentionMaskInterface.register(WHOLE, flash_attention_mask)
AttentionInterface.register(STAND_IN, breaking)
AttentionMaskInterface.register(STAND_IN, flash_attention_mask)


def loaded_with(name, architecture="llava_onevision", everywhere=False):
    """A model whose language model, or all of it, says that it was loaded with FlashAttention."""
    model = deepcopy(shared_model(architecture, layers=3))
    config = model.config if everywhere else model.get_decoder().config
    config._attn_implementation = name
    return model


def implementations(model):
    configs = (model.config, model.get_decoder().config, model.config.vision_config)
    return [config._attn_implementation for config in configs]


@pytest.mark.parametrize("name", NAMES)
def test_the_language_model_is_switched_and_said_once(name):
    model = loaded_with(name, everywhere=True)
    assert implementations(model) == [name, name, name]
    with pytest.warns(UserWarning, match=LOADED.format(name.replace("|", r"\|")) + ".* switched to SDPA") as said:
        sharp_compile.compile(model, inner="eager")
    assert len(said) == 1 and said[0].filename == __file__
    assert implementations(model) == ["sdpa", "sdpa", name]
    with warnings.catch_warnings(action="error"):
        sharp_compile.compile(model, inner="eager")


@pytest.mark.parametrize(
    "architecture",
    ["qwen2_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llava_onevision", "chameleon"))],
)
def test_a_switched_model_is_pruned(architecture):
    model, options = shared_model(architecture, layers=3), {"inner": "eager", "retention": 0.25}
    inputs = ALL_ARCHITECTURES[architecture].inputs(model)
    expected = forward(sharp_compile.compile(deepcopy(model), **options), inputs).logits
    sharp_compile.reset()
    flash = loaded_with(STAND_IN, architecture)
    with pytest.warns(UserWarning, match="is switched to SDPA"):
        sharp_compile.compile(flash, **options)
    actual = forward(flash, inputs).logits
    the_pruned_graph(sharp_compile.reports())
    assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("compile_model", ["keep", pytest.param("module", marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ["llava_onevision", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
def test_a_model_that_is_not_switched_says_why_it_is_not_pruned(architecture, compile_model):
    model = loaded_with(STAND_IN, architecture)
    inputs = ALL_ARCHITECTURES[architecture].inputs(model)
    expected = forward(model, inputs).logits
    with warnings.catch_warnings(action="error"):
        if compile_model == "keep":
            sharp_compile.compile(model, inner="eager", flash_attention="keep")
        else:
            model.compile(backend="sharp", options={"inner": "eager"})
    reason = LOADED.format(STAND_IN) + r" graphs hide: sharp_compile.compile\(model\) switches it to SDPA"
    with pytest.warns(UserWarning, match=reason):
        actual = forward(model, inputs).logits
    assert implementations(model)[1] == STAND_IN
    assert not any(report.pruned for report in sharp_compile.reports())
    assert_close(actual, expected, **TOLERANCE)


def test_it_is_an_error_where_that_was_asked_for():
    model = loaded_with(STAND_IN)
    model.compile(backend="sharp", options={"inner": "eager", "on_skip": "raise"})
    with pytest.raises(CannotPrune, match=LOADED.format(STAND_IN)):
        forward(model, ALL_ARCHITECTURES["llava_onevision"].inputs(model))


def test_what_cannot_be_switched_stays(monkeypatch):
    model = loaded_with(STAND_IN)
    monkeypatch.setattr(type(model.get_decoder()), "_supports_sdpa", False)
    with pytest.warns(UserWarning, match=LOADED.format(STAND_IN) + r" no graph shows, and stays so \(.+\)"):
        sharp_compile.compile(model, inner="eager")
    assert implementations(model)[1] == STAND_IN


def test_disabled_nothing_is_switched():
    model = loaded_with(STAND_IN)
    with warnings.catch_warnings(action="error"):
        sharp_compile.compile(model, disable=True)
    assert implementations(model)[1] == STAND_IN


@pytest.mark.parametrize("architecture", ["llava_onevision", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
def test_operators_that_stand_whole_in_the_graph_are_pruned(architecture):
    model, options = shared_model(architecture, layers=3), {"inner": "eager", "retention": 0.25}
    inputs = ALL_ARCHITECTURES[architecture].inputs(model)
    del inputs["attention_mask"]  # by which transformers would look for padding, at the values of tensors
    expected = forward(sharp_compile.compile(deepcopy(model), **options), inputs).logits
    sharp_compile.reset()
    flash = sharp_compile.compile(loaded_with(WHOLE, architecture), flash_attention="keep", **options)
    actual = forward(flash, inputs).logits
    the_pruned_graph(sharp_compile.reports())
    assert_close(actual, expected, **TOLERANCE)

"""Text models that attend by code of their own in older versions, past the attention functions of transformers.

There they cut a mask that is wider than their keys to its first columns: of a padded row on a pruned cache these are
the wrong ones.
"""

from copy import deepcopy

import pytest
from transformers import AutoConfig

import sharp_compile
from tests import oracle
from tests.architectures.llava_onevision import LlavaOnevision
from tests.support import assert_same_generation, generate, the_pruned_graph

TEXTS = ("nemotron", "stablelm")


class WithText(LlavaOnevision):
    """LLaVA-OneVision with a text model of any kind."""

    def __init__(self, model_type: str):
        self.model_type = model_type

    def text_config(self, text):
        return AutoConfig.for_model(self.model_type, **text)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("text", TEXTS)
def test_generate_of_padded_rows(text, attention):
    architecture = WithText(text)
    model = architecture.build(attn_implementation=attention)
    inputs = architecture.inputs(model, batch=2, pad=[0, 3])
    options = {"retention": 0.25, "layer": 1, "selector": "uniform"}
    fast = sharp_compile.compile(deepcopy(model), inner="eager", **options)
    actual = generate(fast, inputs)
    the_pruned_graph(sharp_compile.reports())
    with oracle.prune(model, **options):
        expected = generate(model, inputs)
    assert_same_generation(actual, expected, inputs)

"""FastV by hand is FastV by the compiler."""

import pytest
import torch
from torch.testing import assert_close

from sharp_compile.options import Cut
from sharp_compile.tools.bench.decoders import SHAPES, Setup, build, inputs
from sharp_compile.tools.bench.handpatched import patch
from sharp_compile.tools.weight_sharing import weight_sharing_copy

SETUP = Setup(SHAPES["qwen2-7b"].scaled(128), 4, torch.float32)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_same_logits_and_caches(layer):
    model, given = build(SETUP, "cpu"), inputs(SETUP, 60, "cpu")
    patched, compiled = weight_sharing_copy(model), weight_sharing_copy(model)
    patch(patched, layer, Cut(layer, 1, 5).kept(60))
    options = {"selector": "fastv", "retention": 0.2, "layer": layer, "inner": "eager"}
    compiled.compile(backend="sharp", options=options)
    with torch.no_grad():
        (actual, ours), (expected, theirs) = patched(**given), compiled(**given)
    assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    lengths = [[layer.keys.shape[2] for layer in cache.layers] for cache in (ours, theirs)]
    assert lengths[0] == lengths[1] == [92] * (layer + 1) + [44] * (3 - layer)
    step, mask = given["embeddings"][:, -1:], torch.ones(1, 93, dtype=torch.int64)
    with torch.no_grad():
        assert_close(
            patched(step, mask, past_key_values=ours)[0],
            compiled(step, mask, past_key_values=theirs)[0],
            atol=1e-4,
            rtol=1e-4,
        )

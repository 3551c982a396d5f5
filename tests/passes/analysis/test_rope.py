"""The rotary embedding of keys is found by what it reads, and can be applied to other keys."""

import pytest
import torch
from sharp_compile.passes.analysis.decoder import find_decoder, find_layer_input
from sharp_compile.passes.analysis.injection import find_injections
from sharp_compile.passes.analysis.rope import find_rope, rope_module
from sharp_compile.passes.fx.nodes import example_value
from torch.testing import assert_close

from tests.graphs import dynamo_graph
from tests.toy import Toy, rotate_half, toy_inputs


def rope_of(layer, **toy):
    model = Toy(**toy)
    graph = dynamo_graph(model, **toy_inputs()).graph
    (injection,) = find_injections(graph)
    decoder = find_decoder(graph, injection.embeddings)
    return model, find_rope(decoder, decoder.layers[layer], find_layer_input(decoder, layer))


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("eager", [False, True])
def test_it_rotates_other_keys(layer, eager):
    model, rope = rope_of(layer, eager=eager)
    assert rope.nodes and not rope.is_bshd
    rotate, inputs = rope_module(rope)
    cos, sin, _ = model.positions(torch.zeros(1, 26, 16), None)
    assert [tuple(example_value(node).shape) for node in inputs] == [(1, 1, 26, 8)] * 2
    keys = torch.randn(1, 2, 26, 8)
    expected = keys * cos[:, None] + rotate_half(keys) * sin[:, None]
    # As they enter the product: the eager form repeats them for its query heads before.
    expected = expected.repeat_interleave(2, 1) if eager else expected
    assert_close(rotate(keys, cos[:, None], sin[:, None]), expected)

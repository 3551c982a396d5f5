"""Writes into preallocated caches, as versions of transformers make them."""

import operator

import pytest
import torch
from sharp_compile.passes.canonicalize.static_cache import find_slack
from sharp_compile.passes.fx.emit import Emitter
from torch.fx import Graph, GraphModule

S, SLOTS = 5, 9


def graph_with_a_write(length):
    """Keys [1, 2, S, 3] after the `length` that a cache holds, in a buffer with SLOTS slots."""
    graph = Graph()

    def add(target, *arguments, value):
        node = graph.call_function(target, arguments)
        node.meta["example_value"] = value
        return node

    inputs = []
    for name, value in (("embeddings", torch.zeros(1, S, 4)), ("keys", torch.ones(1, 2, S, 3)), ("length", length)):
        inputs.append(graph.placeholder(name))
        inputs[-1].meta["example_value"] = value
    embeddings, keys, held = inputs
    buffer = add(torch.zeros, 1, 2, SLOTS, 3, value=torch.zeros(1, 2, SLOTS, 3))
    count = add(torch.arange, S, value=torch.arange(S))
    places = add(operator.add, count, held, value=torch.arange(S) + length)
    written = add(torch.index_copy, buffer, 2, places, keys, value=torch.zeros(1, 2, SLOTS, 3))
    graph.output(written)
    return GraphModule(torch.nn.Module(), graph), embeddings


def follow(length):
    module, embeddings = graph_with_a_write(length)
    padded = find_slack(Emitter(module, trace=True), embeddings).buffers
    module.recompile()
    return module, padded


@pytest.mark.parametrize("length", [torch.tensor(0), torch.tensor([0])], ids=["a scalar", "of one element"])
def test_a_write_behind_nothing_follows_the_length(length):
    module, padded = follow(length)
    assert len(padded) == 1
    short = torch.ones(1, 2, 3, 3)
    written = module(torch.zeros(1, 3, 4), short, length)
    assert written.shape[2] == 3 + SLOTS - S
    assert written[:, :, :3].equal(short) and not written[:, :, 3:].any()


def test_a_length_for_each_row_is_another_thing():
    assert not follow(torch.zeros(S, dtype=torch.int64))[1]

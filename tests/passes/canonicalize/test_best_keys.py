"""A choice of the best keys is one function, right for any number of keys."""

import pytest
import torch
from sharp_compile.passes.analysis.attention import find_attention
from sharp_compile.passes.analysis.best_keys import all_keys, check_chosen_after_cut, mark_best
from sharp_compile.passes.canonicalize.best_keys import write_best_keys
from sharp_compile.passes.errors import CannotPrune

from tests.graphs import Recorder


def graph_of(function, *inputs):
    recorder = Recorder()
    torch.compile(function, backend=recorder, fullgraph=True)(*inputs)
    (module,) = recorder.modules
    write_best_keys(module.graph)
    module.recompile()
    return module


def calls(module):
    return module.graph.find_nodes(op="call_function", target=mark_best)


def attended(scores, mask, k=5):
    """As sparse attentions of transformers write it."""
    places = scores.masked_fill(~mask, float("-inf")).topk(min(k, scores.shape[-1]), dim=-1).indices.to(torch.int32)
    hidden = places.new_ones(scores.shape, dtype=torch.bool).scatter(-1, places.long(), False)
    return mask.unsqueeze(1) & ~hidden.unsqueeze(1)


def scores_and_mask(length):
    scores = torch.randn(2, length, length, generator=torch.Generator().manual_seed(0))
    return scores, torch.ones(length, length, dtype=torch.bool).tril().expand(2, -1, -1)


def test_the_places_of_the_highest_scores():
    inputs = scores_and_mask(12)
    module = graph_of(attended, *inputs)
    assert len(calls(module)) == 1
    assert not [node for node in module.graph.nodes if "topk" in node.name]
    assert module(*inputs)[0].equal(attended(*inputs))


@pytest.mark.parametrize("length", [3, 5, 9])
def test_the_same_graph_is_right_for_fewer_keys(length):
    module = graph_of(attended, *scores_and_mask(12))
    fewer = scores_and_mask(length)
    assert module(*fewer)[0].equal(attended(*fewer))


def test_the_mask_of_all_keys_is_found():
    module = graph_of(attended, *scores_and_mask(12))
    combined = module.graph.output_node().args[0][0]
    plain = all_keys(combined)
    assert plain is not combined
    assert all_keys(plain) is plain
    assert calls(module)[0] not in plain.all_input_nodes


def test_a_choice_among_all_tokens_is_not_taken_over_after_a_cut():
    def model(scores, mask, query):
        return torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=attended(scores, mask))

    graph = graph_of(model, *scores_and_mask(12), torch.randn(2, 1, 12, 8)).graph
    (choice,) = graph.find_nodes(op="call_function", target=mark_best)
    (attention,) = find_attention(graph)
    check_chosen_after_cut(graph, {attention.key, choice})
    check_chosen_after_cut(graph, set())
    with pytest.raises(CannotPrune, match="takes over the best keys"):
        check_chosen_after_cut(graph, {attention.key})


def lowest(scores):
    places = scores.topk(5, dim=-1, largest=False).indices
    return torch.zeros_like(scores).scatter(-1, places, 1.0)


def into_data(scores):
    return scores.scatter(-1, scores.topk(5, dim=-1).indices, 0.0)


def of_queries(scores):
    return torch.zeros_like(scores).scatter(1, scores.topk(5, dim=1).indices, 1.0)


def into_fewer(scores):
    return torch.zeros(2, 12, 16).scatter(-1, scores.topk(5, dim=-1).indices, 1.0)


@pytest.mark.parametrize("function", [lowest, into_data, of_queries, into_fewer])
def test_other_places_stay_as_they_are(function):
    scores, _ = scores_and_mask(12)
    module = graph_of(function, scores)
    assert not calls(module)
    assert module(scores)[0].equal(function(scores))

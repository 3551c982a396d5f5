"""A softmax with sinks is one, whose sinks are the same for all queries and all that is dropped of its weights."""

import operator

import pytest
import torch
import torch.nn.functional as F
from sharp_compile.passes.analysis.attention import find_attention
from sharp_compile.passes.analysis.sinks import find_sinks

from tests.graphs import dynamo_graph

Q, K = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
MASK = torch.zeros(1, 1, 6, 6).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -1e9)
SINKS = torch.randn(2)


def masked_scores(q, k, mask):
    return torch.matmul(q, k.transpose(2, 3)) * 0.3 + mask


def joined(q, k, mask, sinks):
    return torch.cat([masked_scores(q, k, mask), sinks.reshape(1, -1, 1, 1).expand(1, -1, 6, -1)], dim=-1)


def shifted(q, k, mask, sinks):
    """As transformers writes it."""
    logits = joined(q, k, mask, sinks)
    logits = logits - logits.max(dim=-1, keepdim=True).values
    weights = F.softmax(logits, dim=-1, dtype=logits.dtype)[..., :-1]
    return torch.matmul(F.dropout(weights, 0.0).to(k.dtype), k)


def shifted_by_amax(q, k, mask, sinks):
    logits = joined(q, k, mask, sinks)
    return torch.softmax(logits - logits.amax(-1, keepdim=True), -1)[..., :-1] @ k


def plain(q, k, mask, sinks):
    return joined(q, k, mask, sinks).softmax(3)[:, :, :, :-1] @ k


@pytest.mark.parametrize("form", [shifted, shifted_by_amax, plain])
def test_forms(form):
    graph = dynamo_graph(form, Q, K, MASK, SINKS).graph
    (attention,) = find_attention(graph)
    assert (attention.query.name, attention.key.name, attention.mask.name) == ("l_q_", "l_k_", "l_mask_")
    assert attention.scale == 0.3
    assert attention.sinks.meta["example_value"].shape == (1, 2, 1, 1)
    (found,) = filter(None, map(find_sinks, graph.nodes))
    assert found.is_shifted == (form is not plain)


def kept(q, k, mask, sinks):
    return joined(q, k, mask, sinks).softmax(-1) @ F.pad(k, (0, 0, 0, 1))


def another_slice(q, k, mask, sinks):
    return joined(q, k, mask, sinks).softmax(-1)[..., 1:] @ k


def of_queries(q, k, mask, sinks):
    return joined(q, k, mask, sinks).softmax(-1)[..., :-1, :-1] @ k


def in_front(q, k, mask, sinks):
    logits = torch.cat([sinks.reshape(1, -1, 1, 1).expand(1, -1, 6, -1), masked_scores(q, k, mask)], dim=-1)
    return logits.softmax(-1)[..., :-1] @ k


def two(q, k, mask, sinks):
    twice = sinks.reshape(1, -1, 1, 1).expand(1, -1, 6, 2)
    return torch.cat([masked_scores(q, k, mask), twice], dim=-1).softmax(-1)[..., :-1] @ F.pad(k, (0, 0, 0, 1))


def of_each_query(q, k, mask, sinks):
    return torch.cat([masked_scores(q, k, mask), q.sum(-1, keepdim=True)], dim=-1).softmax(-1)[..., :-1] @ k


def over_queries(q, k, mask, sinks):
    return joined(q, k, mask, sinks).softmax(2)[..., :-1] @ k


def less_another_maximum(q, k, mask, sinks):
    logits = joined(q, k, mask, sinks)
    return torch.softmax(logits - masked_scores(q, k, mask).max(-1, keepdim=True).values, -1)[..., :-1] @ k


def less_the_maximum_of_queries(q, k, mask, sinks):
    logits = joined(q, k, mask, sinks)
    return torch.softmax(logits - logits.max(2, keepdim=True).values, -1)[..., :-1] @ k


def less_the_place(q, k, mask, sinks):
    logits = joined(q, k, mask, sinks)
    return torch.softmax(logits - logits.max(-1, keepdim=True).indices, -1)[..., :-1] @ k


def added(q, k, mask, sinks):
    logits = joined(q, k, mask, sinks)
    return torch.softmax(logits + logits.max(-1, keepdim=True).values, -1)[..., :-1] @ k


@pytest.mark.parametrize(
    "other",
    [
        *(kept, another_slice, of_queries, in_front, two, of_each_query, over_queries),
        *(less_another_maximum, less_the_maximum_of_queries, less_the_place, added),
    ],
)
def test_what_only_looks_like_it(other):
    graph = dynamo_graph(other, Q, K, MASK, SINKS).graph
    assert graph.find_nodes(op="call_function", target=operator.getitem) or other is kept
    assert find_attention(graph) == []
    assert not any(map(find_sinks, graph.nodes))

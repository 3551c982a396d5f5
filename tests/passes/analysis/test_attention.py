"""Attention is found in each form it is written in, with its queries, keys, mask and scale."""

import pytest
import torch
import torch.nn.functional as F
from sharp_compile.passes.analysis.attention import as_sdpa, find_attention, find_attention_op
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests.graphs import dynamo_graph

Q, K = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
MASK = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]


def fused(q, k, mask):
    return F.scaled_dot_product_attention(q, k, k, mask, scale=0.3)


def causal(q, k, mask):
    return F.scaled_dot_product_attention(q, k, k, is_causal=True)


def eager(q, k, mask):
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.3
    scores = scores + torch.where(mask, 0.0, -1e9)
    return torch.matmul(F.dropout(F.softmax(scores, dim=-1, dtype=torch.float32), 0.0).to(q.dtype), k)


def divided(q, k, mask):
    return torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / 4, -1) @ k


def flex(q, k, mask):
    return flex_attention(q, k, k, block_mask=create_block_mask(lambda b, h, q, k: q >= k, None, None, 6, 6, "cpu"))


@pytest.mark.parametrize(
    ("form", "masked", "scale", "is_causal", "is_fused"),
    [
        (fused, True, 0.3, False, True),
        (causal, False, None, True, True),
        (eager, True, 0.3, False, False),
        (divided, False, 0.25, False, False),
        (flex, False, 0.5, True, False),
    ],
)
def test_forms(form, masked, scale, is_causal, is_fused):
    graph = dynamo_graph(form, Q, K, MASK).graph
    (attention,) = find_attention(graph)
    assert (attention.query.name, attention.key.name) == ("l_q_", "l_k_")
    assert (attention.mask is not None, attention.scale, attention.causal) == (masked, scale, is_causal)
    assert (as_sdpa(attention.output) is not None) == is_fused
    assert (find_attention_op(attention.output) is not None) == is_fused
    if masked:
        assert attention.mask in attention.masked.all_input_nodes


@pytest.mark.parametrize(
    "other",
    [
        lambda q, k, mask: torch.softmax(q, -1) @ k.transpose(2, 3),
        lambda q, k, mask: torch.softmax(q @ k.transpose(2, 3), 2) @ k,
        lambda q, k, mask: torch.softmax(q @ k.transpose(2, 3), -1).sum(-1),
    ],
    ids=["no product in front", "over queries", "no product after"],
)
def test_what_only_looks_like_it(other):
    assert find_attention(dynamo_graph(other, Q, K, MASK).graph) == []

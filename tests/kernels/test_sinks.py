"""Sinks as a key, against a softmax with one more logit."""

import pytest
import torch
from sharp_compile.kernels.attention_column_sums import attention_column_sums
from sharp_compile.kernels.attention_rows import attention_rows
from sharp_compile.kernels.received_from_all import received_from_all
from sharp_compile.kernels.sinks import sinks_as_key
from torch.testing import assert_close

LENGTH = 70
SEEN = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
SEEN[1, :, :, :20] = False  # rows that see nothing but the sinks
MASKS = {
    "boolean": SEEN,
    "additive": torch.zeros(SEEN.shape).masked_fill(~SEEN, float("-inf")),
    "lowest of half": torch.zeros(SEEN.shape, dtype=torch.float16).masked_fill(~SEEN, torch.finfo(torch.float16).min),
}


def state(sinks):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, LENGTH, 8, generator=generator) for heads in (4, 2))
    sinks = torch.randn(sinks, generator=generator) * 3
    logits = query @ key.repeat_interleave(2, dim=1).mT * 0.3
    joined = torch.cat([logits.masked_fill(~SEEN, float("-inf")), sinks.expand(2, 4, LENGTH, 1)], -1)
    return query, key, sinks, joined.softmax(-1)[..., :-1]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sinks", [(1, 4, 1, 1), (2, 1, 1, 1)])
def test_rows_and_columns(mask, sinks):
    query, key, sinks, shares = state(sinks)
    rows, weight = torch.tensor([3, 50, 69]), torch.rand(2, 3)
    keys, added = sinks_as_key(key, MASKS[mask][:, :, rows], sinks)
    assert_close(attention_rows(query[:, :, rows], keys, added, 0.3)[..., :LENGTH], shares[:, :, rows])
    received = attention_column_sums(query[:, :, rows], keys, weight, added, 0.3)[:, :LENGTH]
    assert_close(received, (shares[:, :, rows].mean(1) * weight[..., None]).sum(1))


@pytest.mark.parametrize("mask", [*MASKS, None])
def test_received_from_all(mask):
    query, key, sinks, shares = state((1, 4, 1, 1))
    weight, batch = torch.rand(2, LENGTH), slice(None) if mask else slice(1)
    received = received_from_all(query, key, weight, MASKS.get(mask), 0.3, sinks)
    assert_close(received[batch], (shares.mean(1) * weight[..., None]).sum(1)[batch])
    torch.library.opcheck(received_from_all, (query, key, weight, MASKS.get(mask), 0.3, sinks))

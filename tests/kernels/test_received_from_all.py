"""Attention received from all tokens, against the whole matrix."""

import pytest
import torch
from sharp_compile.kernels.received_from_all import received_from_all
from torch.testing import assert_close


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 63, 64, 130])
@pytest.mark.parametrize("form", ["causal", "boolean", "additive", "one row"])
def test_equals_sums_over_the_matrix(heads, kv_heads, length, form):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, length, 8, generator=generator)
    key = torch.randn(2, kv_heads, length, 8, generator=generator)
    weight = torch.rand(2, length, generator=generator)
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    seen[1, :, :, : length // 3] = False
    masks = {
        "causal": None,
        "boolean": seen,
        "additive": torch.zeros(seen.shape).masked_fill(~seen, float("-inf")),
        "one row": seen[:, :, -1:],
    }
    mask = masks[form]
    visible = seen[:1] if mask is None else seen[:, :, -1:] if form == "one row" else seen
    logits = query @ key.repeat_interleave(heads // kv_heads, dim=1).mT * 0.3
    # A row that sees nothing gives nothing.
    shares = logits.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num(0.0).mean(1)
    expected = (shares * weight[..., None]).sum(1)
    assert_close(received_from_all(query, key, weight, mask, 0.3), expected)


def test_the_operator_is_one():
    arguments = torch.randn(2, 4, 70, 8), torch.randn(2, 2, 70, 8), torch.rand(2, 70), None, None
    torch.library.opcheck(received_from_all, arguments)

"""The balancing loss of experts: router logits of a pruned graph, and those of any other model."""

import pytest
import torch
from torch.testing import assert_close

from sharp_compile.integrations.transformers import router
from sharp_compile.tensor_records import KEPT_POSITIONS

KEPT = torch.tensor([[0, 2, 5], [1, 4, 5]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


@pytest.fixture
def loss():
    module = pytest.importorskip("transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe")
    router.install_in(module)
    return module.load_balancing_loss_func


def test_each_layer_weighs_its_own_tokens(loss):
    torch.manual_seed(0)
    whole, short = torch.randn(12, 4), torch.randn(6, 4)
    setattr(short, KEPT_POSITIONS, KEPT)
    actual = loss((whole, short), 4, 2, MASK)
    weight = torch.cat([MASK.flatten(), MASK.gather(1, KEPT).flatten()]).float()
    scores = torch.cat([whole, short]).softmax(-1)
    share = torch.zeros_like(scores).scatter(1, scores.topk(2).indices, 1.0)
    assert_close(actual, 4 * ((weight @ share) * (weight @ scores)).sum() / weight.sum() ** 2)


def test_others_go_to_the_stock_function(loss):
    gates = (torch.randn(12, 4), torch.randn(12, 4))
    assert_close(loss(gates, 4, 2, MASK), loss.__wrapped__(gates, 4, 2, MASK))
    compiled = torch.compile(lambda: loss(gates, 4, 2, MASK), backend="eager", fullgraph=True)
    assert_close(compiled(), loss.__wrapped__(gates, 4, 2, MASK))

"""What a decoder attends by."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sharp_compile import CannotPrune
from tests.toy import Layer, Toy, toy_inputs


@torch.library.custom_op("tests::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@attend.register_fake
def _(q, k, v):
    return torch.empty_like(q)


class Own(Layer):
    """Attends by an operator of its own, as FlashAttention does."""

    def attend(self, q, k, v, mask):
        return attend(q, k, v)


def test_an_attention_that_is_not_known_is_named():
    model = Toy().requires_grad_(False)
    model.layers = nn.ModuleList(Own(16, 4, 2, 8, False) for _ in range(3)).requires_grad_(False)
    options = {"inner": "eager", "on_skip": "raise"}
    with pytest.raises(CannotPrune, match=r"attends by tests.attend.default, which is not known; load the model with"):
        torch.compile(model, backend="sharp", options=options)(**toy_inputs())


class ByEinsum(Layer):
    def attend(self, q, k, v, mask):
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 1) for each in (k, v))
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(hidden, float("-inf"))
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def test_an_einsum_is_named_with_its_line():
    model = Toy()
    model.layers = nn.ModuleList(ByEinsum(16, 4, 2, 8, False) for _ in range(3))
    reason = (
        r'attends by einsum \(File ".*test_decoder.py", line \d+, in attend\), which is not known; load .* torch.matmul'
    )
    with pytest.raises(CannotPrune, match=reason):
        torch.compile(model, backend="sharp", options={"inner": "eager", "on_skip": "raise"})(**toy_inputs())


class Biased(Layer):
    """Adds a bias by distance to the scores, and the mask to both."""

    def attend(self, q, k, v, mask):
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 1) for each in (k, v))
        place = torch.arange(q.shape[2])
        distance = place[:, None] - place
        scores = torch.matmul(q, k.transpose(2, 3)) - distance
        scores = scores + torch.where(distance < 0, float("-inf"), 0.0)
        return torch.matmul(scores.softmax(-1), v)


def test_a_softmax_of_more_than_products_is_named_with_the_line():
    model = Toy()
    model.layers = nn.ModuleList(Biased(16, 4, 2, 8, False) for _ in range(3))
    reason = (
        r'a softmax in a form that is not known, at sub \(File ".*test_decoder.py", line \d+, in attend\): known are'
    )
    with pytest.raises(CannotPrune, match=reason):
        torch.compile(model, backend="sharp", options={"inner": "eager", "on_skip": "raise"})(**toy_inputs())


class Checkpointed(Layer):
    """Computes what is inside of it again in the backward pass."""

    def forward(self, *args):
        return checkpoint(super().forward, *args, use_reentrant=False)


def test_checkpointed_layers_are_named():
    model = Toy()
    model.layers = nn.ModuleList(Checkpointed(16, 4, 2, 8, False) for _ in range(3))
    with pytest.raises(CannotPrune, match=r"layers are checkpointed.*do without gradient checkpointing"):
        torch.compile(model, backend="sharp", options={"inner": "eager", "on_skip": "raise"})(**toy_inputs())

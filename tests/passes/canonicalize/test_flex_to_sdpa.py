"""flex_attention: block masks at the kept positions, and what of it is declined."""

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import register_backend
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from tests.toy import Layer, Toy, toy_inputs

FLEX = torch.ops.higher_order.flex_attention


class FlexLayer(Layer):
    """Attends by flex_attention, with a cap on the scores."""

    @staticmethod
    def score(score, b, h, q, k):
        return 3 * torch.tanh(score / 3)

    @staticmethod
    def visible(b, h, q, k):
        return q >= k

    def mask(self, mask, q):
        rows, _, length, _ = q.shape
        if mask is None:
            return create_block_mask(self.visible, None, None, length, length, q.device)
        dense = mask.expand(rows, -1, -1, -1)
        return create_block_mask(lambda b, h, q, k: dense[b, 0, q, k], rows, None, length, length, q.device)

    def attend(self, q, k, v, mask):
        return flex_attention(q, k, v, score_mod=self.score, block_mask=self.mask(mask, q), enable_gqa=True)


class ByPosition(FlexLayer):
    """Distant keys count less."""

    @staticmethod
    def score(score, b, h, q, k):
        return score - 0.1 * (q - k)


class ByHead(FlexLayer):
    """Each head sees another distance."""

    @staticmethod
    def visible(b, h, q, k):
        return (q >= k) & (q - k < 4 + h)

    def mask(self, mask, q):
        return create_block_mask(self.visible, None, 4, q.shape[2], q.shape[2], q.device)


class WithNormalizer(FlexLayer):
    """Uses the log-sum-exp of the scores too."""

    def attend(self, q, k, v, mask):
        out, lse = flex_attention(q, k, v, block_mask=self.mask(mask, q), enable_gqa=True, return_lse=True)
        return out * lse.sigmoid().unsqueeze(-1)


def flexible(layer=FlexLayer, layers=4):
    """A toy without gradients, which flex_attention does not have on a CPU."""
    model = Toy()
    model.layers = nn.ModuleList(layer(16, 4, 2, 8, False) for _ in range(layers))
    return model.requires_grad_(False)


def compiled(model, **options):
    return torch.compile(model, backend="sharp", options={"inner": "eager", "on_skip": "raise"} | options)


ROWS = {"one row": {}, "two rows": {"rows": 2}, "padded": {"rows": 2, "pad": [0, 5]}}


@pytest.mark.parametrize(
    ("rows", "selector"), [("one row", "fastv"), ("two rows", "uniform"), ("padded", "fastv"), ("padded", "sharp")]
)
def test_pruned_equals_the_eager_model_pruned_by_hand(rows, selector):
    model, inputs = flexible(layers=3), toy_inputs(**ROWS[rows])
    actual, keys = compiled(model, retention=0.25, layer=1, selector=selector)(**inputs)
    report = sharp_compile.reports()[-1]
    assert (report.pruned, report.kept_tokens) == (True, 5)
    expected, expected_keys = model(**inputs, cut={1: report.kept})
    real = torch.ones_like(report.kept, dtype=torch.bool)
    if "attention_mask" in inputs:
        real = inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-4)
    assert [key.shape for key in keys] == [key.shape for key in expected_keys]


def test_the_layers_behind_the_cut_have_blocks_of_the_kept_tokens_only():
    """300 tokens are three blocks of 128, 75 and text are one; at the cut, one block of these sees three.

    The layer before keeps the mask that it had.
    """
    seen = []

    @register_backend(name="sees_flex")
    def look(module, inputs):
        nodes = module.graph.find_nodes(op="call_function", target=FLEX)
        seen.extend(tuple(block.meta["example_value"].shape[-2:]) for node in nodes for block in [node.args[4][3]])
        return module.forward

    compiled(flexible(), inner="sees_flex", layer=1, retention=0.25)(**toy_inputs(visual=300))
    assert seen == [(3, 3), (1, 3), (1, 1), (1, 1)]


def test_a_segment_mask_joins_the_block_mask():
    flex, plain = flexible(), Toy()
    flex.load_state_dict(plain.state_dict())
    for layer in flex.layers:
        layer.score = lambda score, b, h, q, k: score
    options = {"segment": {"frames": 1, "scope": "forward", "tokens_per_frame": 5}, "layer": 1, "retention": 0.25}
    inputs = toy_inputs(rows=2, pad=[0, 5])
    assert_close(
        compiled(flex, **options)(**inputs)[0][:, -5:],
        compiled(plain, **options)(**inputs)[0][:, -5:],
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(ByPosition, "changes scores by position"), (ByHead, "differs between heads"), (WithNormalizer, "log-sum-exp")],
)
def test_declined(layer, reason):
    with pytest.raises(CannotPrune, match=reason):
        compiled(flexible(layer))(**toy_inputs())

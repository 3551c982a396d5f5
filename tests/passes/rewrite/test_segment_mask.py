"""The segment mask in the forward pass, against stock eager models whose masks are changed with hooks."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sharp_compile.kernels.segment_attention import block_sparse, segment_attention
from torch.testing import assert_close

import sharp_compile
from tests import oracle
from tests.architectures import ARCHITECTURES, shared_model, visual_mask
from tests.support import assert_same_cache, assert_same_logits, forward, the_pruned_graph
from tests.toy import Toy, toy_inputs

LAYERS = 4


def allowed(is_visual, frames):
    """``[B, S, S]`` bool: causal, and a visual token sees text and the tokens of its own segment."""
    rows, length = is_visual.shape
    result = torch.ones(rows, length, length, dtype=torch.bool).tril()
    for row in range(rows):
        for q in range(length):
            for k in range(q):
                if is_visual[row, q] and is_visual[row, k] and frames[row, q] != frames[row, k]:
                    result[row, q, k] = False
    return result


def masked_by_hand(model, layer, visible):
    """Hooks that hide from the attentions of layers ``0..layer`` all but what is `visible`."""

    def hide(attention, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(visible.shape[-2:], dtype=torch.bool).tril()[None, None]
        if mask.dtype == torch.bool:
            mask = mask & visible[:, None]
        else:
            mask = mask.masked_fill(~visible[:, None], torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": mask}

    layers = oracle.decoder_layers(model)[: layer + 1]
    return [block.self_attn.register_forward_pre_hook(hide, with_kwargs=True) for block in layers]


@pytest.mark.parametrize(
    "name, rows, attention",
    [
        ("llava_onevision", {}, "sdpa"),
        ("llava_onevision", {"batch": 2, "pad": [0, 3]}, "eager"),
        pytest.param("qwen2_vl", {"batch": 2, "pad": [0, 3]}, "sdpa", marks=pytest.mark.slow),
        pytest.param("internvl", {}, "eager", marks=pytest.mark.slow),
    ],
)
def test_stock_models(name, rows, attention, room_for_many_graphs):
    model = shared_model(name, layers=LAYERS, attn_implementation=attention)
    inputs = ARCHITECTURES[name].inputs(model, **rows)
    is_visual = visual_mask(model, inputs)
    tokens = ARCHITECTURES[name].tokens_per_block
    frame = (is_visual.cumsum(1) - 1) // tokens
    segment = {"scope": "forward", "frames": 2, "tokens_per_frame": tokens if name == "llava_onevision" else None}
    options = {"retention": 0.25, "layer": 1, "segment": segment, "inner": "eager", "on_skip": "raise"}
    actual = forward(torch.compile(deepcopy(model), backend="sharp", options=options), inputs)
    report = the_pruned_graph(sharp_compile.reports())
    handles = masked_by_hand(model, 1, allowed(is_visual, frame // 2))
    try:
        with oracle.prune(model, layer=1, retention=0.25, positions=report.kept):
            expected = forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert_same_logits(actual.logits, expected.logits, inputs)
    assert_same_cache(actual.past_key_values, expected.past_key_values, inputs)


@pytest.mark.parametrize("dynamic", [True, pytest.param(None, marks=pytest.mark.slow)])
def test_the_mask_steers_only_the_layers_before_the_cut(dynamic):
    """A segment of all frames changes nothing, and one of a single frame changes layer 1, whose mask is on too."""
    model = Toy()
    fast = {}
    for frames in (1, 99):
        torch._dynamo.reset()
        segment = {"scope": "forward", "frames": frames, "tokens_per_frame": 5}
        options = {"segment": segment, "retention": 1.0, "inner": "eager", "on_skip": "raise"}
        call = torch.compile(model, backend="sharp", dynamic=dynamic, options=options)
        fast[frames] = [call(**toy_inputs(visual=visual)) for visual in (20, 30, 25)]
    for visual, pointwise, together in zip((20, 30, 25), fast[1], fast[99], strict=True):
        logits, keys = model(**toy_inputs(visual=visual))
        assert_close(together[0], logits, atol=1e-5, rtol=1e-4)
        assert_close(pointwise[1][0], keys[0], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(pointwise[1][1], keys[1], atol=1e-3)


@pytest.mark.parametrize("length", [1, 37, 512, 700, 1100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_chunks_are_dense_attention(length, kv_heads):
    torch.manual_seed(0)
    query = torch.randn(2, 4, length, 8, requires_grad=True)
    key, value = (torch.randn(2, kv_heads, length, 8, requires_grad=True) for _ in range(2))
    segment = torch.randint(-1, 3, (2, length))
    same = (segment[:, :, None] == segment[:, None]) | (segment < 0)[:, None] | (segment < 0)[:, :, None]
    visible = same & torch.ones(length, length, dtype=torch.bool).tril()
    many = (each.repeat_interleave(4 // kv_heads, dim=1) for each in (key, value))
    scores = query @ next(many).mT * 0.3
    expected = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1) @ next(many)
    actual = segment_attention(query, key, value, segment, 0.3)
    assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    assert_close(torch.autograd.grad((actual * weight).sum(), (query, key, value)), wanted, atol=1e-4, rtol=1e-3)


def test_the_operator_is_registered_well():
    query, key = torch.randn(1, 2, 9, 4, requires_grad=True), torch.randn(1, 1, 9, 4, requires_grad=True)
    segment = torch.tensor([[-1, 0, 0, 1, 1, 2, 2, -1, -1]])
    torch.library.opcheck(segment_attention, (query, key, key.detach().clone(), segment, None))


def test_attention_with_dropout_is_declined(monkeypatch):
    def attention(*args, **kwargs):
        return plain(*args, dropout_p=0.1, **kwargs)

    plain = F.scaled_dot_product_attention
    names = {**vars(F), "scaled_dot_product_attention": attention}
    monkeypatch.setattr("tests.toy.F", SimpleNamespace(**names))
    options = {"segment": "forward", "inner": "eager", "on_skip": "raise"}
    with pytest.raises(sharp_compile.CannotPrune, match="has dropout"):
        torch.compile(Toy(), backend="sharp", options=options)(**toy_inputs())


@pytest.mark.slow
@pytest.mark.parametrize("length", [300, 517])
def test_what_a_gpu_gets_is_the_same(length):
    """FlexAttention, compiled for a CPU: the blocks and the mask are those that a GPU skips and reads."""
    query, key = torch.randn(2, 4, length, 16), torch.randn(2, 2, length, 16)
    value = torch.randn(2, 2, length, 16)
    position = torch.arange(length)
    segment = torch.stack([(position - 40) // 128, position // 50]).where(position < length - 20, -1).clamp_min(-1)
    expected = segment_attention(query, key, value, segment, 0.3)
    assert_close(block_sparse(query, key, value, segment, 0.3), expected, rtol=1e-5, atol=1e-5)

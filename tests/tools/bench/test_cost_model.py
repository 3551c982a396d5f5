"""What is counted without running, against formulas and against what runs."""

from dataclasses import replace

import pytest
import torch

from sharp_compile.flops import flop_counter
from sharp_compile.tools.bench.cost_model import _traced, account
from sharp_compile.tools.bench.decoders import SHAPES, Setup, build, inputs
from sharp_compile.tools.bench.vision import TowerShape

SHAPE = SHAPES["qwen2-7b"].scaled(128)
VISUAL, LENGTH = 100, 132


def of_token():
    """Operations for a token in the four projections of attention and in the MLP."""
    size, inner, kv = SHAPE.hidden_size, SHAPE.intermediate_size, SHAPE.num_key_value_heads * SHAPE.head_dim
    return 2 * size * (2 * size + 2 * kv), 2 * 3 * size * inner


def test_the_unpruned_model_is_counted_as_it_runs():
    setup = Setup(SHAPE, 3, torch.float32)
    counted = account(setup, VISUAL, None)
    model, given = build(setup, "cpu"), inputs(setup, VISUAL, "cpu")
    with torch.no_grad(), flop_counter() as counter:
        model(**given)
    assert counted.flops == counter.get_total_flops()
    assert (counted.sequence_length, counted.pruned_length) == (LENGTH, LENGTH)
    assert counted.kv_bytes == 3 * 2 * LENGTH * SHAPE.num_key_value_heads * SHAPE.head_dim * 4


@pytest.mark.parametrize("hoist", [True, False])
def test_a_cut_is_counted_by_the_formula(hoist):
    options = {"selector": "uniform", "retention": 0.1, "layer": 1, "hoist": hoist}
    counted = account(Setup(SHAPE, 10, torch.float32), VISUAL, options)
    short = LENGTH - 90
    projections, mlp = of_token()
    size, kv = SHAPE.hidden_size, SHAPE.num_key_value_heads * SHAPE.head_dim
    whole = LENGTH * (projections + mlp) + 4 * LENGTH * LENGTH * size
    small = short * (projections + mlp) + 4 * short * short * size
    rest = short * (projections + mlp) + (LENGTH - short) * 4 * size * kv + 4 * short * LENGTH * size
    head = 2 * size * SHAPE.vocab_size
    assert counted.flops == whole + (rest if hoist else whole) + 8 * small + head
    assert counted.pruned_length == short
    assert counted.kv_bytes == 2 * kv * 4 * (2 * LENGTH + 8 * short)


@pytest.mark.parametrize(
    "options", [None, pytest.param({"stages": [(0, 0.5), (2, 0.1)], "selector": "fastv"}, marks=pytest.mark.slow)]
)
def test_layers_that_were_not_traced_are_like_those_that_were(options):
    setup = Setup(SHAPE, 9, torch.bfloat16)
    counted = account(setup, VISUAL, options)
    expected = _traced(setup, VISUAL, options)
    assert counted.activation_peak_bytes == expected.activation_peak_bytes
    assert replace(counted, head_bytes=0) == replace(expected, head_bytes=0)


def test_a_pruned_prefill_holds_less():
    full, pruned = (account(Setup(SHAPE, 6, torch.float32), 2000, options) for options in (None, {"retention": 0.1}))
    assert pruned.activation_peak_bytes < full.activation_peak_bytes
    assert pruned.bytes_moved < full.bytes_moved


def test_the_vision_tower_is_counted_as_it_runs():
    setup = Setup(SHAPE, 6, torch.float32, TowerShape(num_hidden_layers=2, num_attention_heads=2))
    model, given = build(setup, "cpu"), inputs(setup, 2 * 196, "cpu")
    with torch.no_grad(), flop_counter() as counter:
        model(**given)
    assert account(setup, 2 * 196, None).flops == counter.get_total_flops()
    alone = account(replace(setup, tower=None), 2 * 196, {"selector": "uniform"})
    assert account(setup, 2 * 196, {"selector": "uniform"}).flops > alone.flops


def test_without_an_attention_mask_none_is_held():
    setup = Setup(SHAPE, 6, torch.float32)
    masked, free = (account(replace(setup, mask=mask), 5000, None) for mask in (True, False))
    assert masked.flops == free.flops
    assert masked.activation_peak_bytes - free.activation_peak_bytes >= 5000**2


def test_a_million_tokens_take_no_memory():
    counted = account(Setup(SHAPES["qwen2.5-72b"], 80, torch.bfloat16), 1_000_000, {"selector": "fastv"})
    assert counted.sequence_length == 1_000_032
    assert counted.pruned_length == 100_032


def test_the_default_cut_of_llava_onevision_7b():
    """32 frames of 196 tokens and one after them: at least 86 % of the operations are saved."""
    setup = Setup(SHAPES["llava-onevision-7b"], 28, torch.bfloat16)
    full, pruned = (account(setup, 32 * 196 + 1, options) for options in (None, {}))
    assert 1 - pruned.flops / full.flops > 0.86

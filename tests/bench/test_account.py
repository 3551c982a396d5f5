"""What is counted without running, against formulas and against what runs."""

from dataclasses import replace

import pytest
import torch

from sharp_compile.bench.account import _traced, account
from sharp_compile.bench.decoders import SHAPES, build, inputs
from sharp_compile.flops import flop_counter

SHAPE = SHAPES["qwen2-7b"].scaled(128)
VISUAL, LENGTH = 100, 132


def of_token():
    """Operations for a token in the four projections of attention and in the MLP."""
    size, inner, kv = SHAPE.hidden_size, SHAPE.intermediate_size, SHAPE.num_key_value_heads * SHAPE.head_dim
    return 2 * size * (2 * size + 2 * kv), 2 * 3 * size * inner


def test_the_unpruned_model_is_counted_as_it_runs():
    counted = account(SHAPE, 3, VISUAL, torch.float32, None)
    model, given = build(SHAPE, 3, torch.float32, "cpu"), inputs(SHAPE, VISUAL, torch.float32, "cpu")
    with torch.no_grad(), flop_counter() as counter:
        model(**given)
    assert counted.flops == counter.get_total_flops()
    assert (counted.sequence_length, counted.pruned_length) == (LENGTH, LENGTH)
    assert counted.kv_bytes == 3 * 2 * LENGTH * SHAPE.num_key_value_heads * SHAPE.head_dim * 4


@pytest.mark.parametrize("hoist", [True, False])
def test_a_cut_is_counted_by_the_formula(hoist):
    options = {"selector": "uniform", "retention": 0.1, "layer": 1, "hoist": hoist}
    counted = account(SHAPE, 10, VISUAL, torch.float32, options)
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


@pytest.mark.parametrize("options", [None, {"stages": [(0, 0.5), (2, 0.1)], "selector": "fastv"}])
def test_layers_that_were_not_traced_are_like_those_that_were(options):
    counted = account(SHAPE, 9, VISUAL, torch.bfloat16, options)
    expected = _traced(SHAPE, 9, VISUAL, torch.bfloat16, options)
    assert counted.activation_peak_bytes == expected.activation_peak_bytes
    assert replace(counted, head_bytes=0) == replace(expected, head_bytes=0)


def test_a_pruned_prefill_holds_less():
    full, pruned = (account(SHAPE, 6, 2000, torch.float32, options) for options in (None, {"retention": 0.1}))
    assert pruned.activation_peak_bytes < full.activation_peak_bytes
    assert pruned.bytes_moved < full.bytes_moved


def test_a_million_tokens_take_no_memory():
    counted = account(SHAPES["qwen2.5-72b"], None, 1_000_000, torch.bfloat16, {"selector": "fastv"})
    assert counted.sequence_length == 1_000_032
    assert counted.pruned_length == 100_032


def test_the_default_cut_of_llava_onevision_7b():
    """32 frames of 196 tokens and one behind them: at least 86 % of the operations are saved."""
    full, pruned = (
        account(SHAPES["llava-onevision-7b"], None, 32 * 196 + 1, torch.bfloat16, options) for options in (None, {})
    )
    assert 1 - pruned.flops / full.flops > 0.86

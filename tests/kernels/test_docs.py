"""The numbers in docs/kernels.md are those of the `cost` functions, and of what is compiled."""

from pathlib import Path

import pytest
from sharp_compile.kernels.gather_together.cost import cost as gather_together
from sharp_compile.kernels.near_copies import cost as near_copies
from sharp_compile.kernels.received_attention import cost as received_attention

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, MLP, ROWS, ELEMENT = 28, 4, 128, 3584, 18944, 16, 2
BANDWIDTH, RATE = 3.0e12, 800e12


def layer_flops(tokens):
    """One full-length decoder layer: its matrices, and the causal half of its attention."""
    matrices = 2 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * KV_HEADS * HEAD_DIM + 3 * HIDDEN * MLP
    return 2 * tokens * matrices + 2 * HEADS * HEAD_DIM * tokens**2


def rows(tokens):
    kept = tokens // 10
    values = [(1, HIDDEN, ELEMENT), (1, HEAD_DIM, ELEMENT), (1, HEAD_DIM, ELEMENT)]
    costs = {
        "received attention": received_attention.cost(1, HEADS, KV_HEADS, ROWS, tokens, HEAD_DIM, ELEMENT),
        "near copies, none found": near_copies.cost(tokens, HIDDEN, kept, kept, ELEMENT),
        "near copies, all walked": near_copies.cost(tokens, HIDDEN, tokens, kept, ELEMENT),
        "gather together": gather_together(1, kept, values),
    }
    layer = layer_flops(tokens) / RATE
    for name, (moved, flops) in costs.items():
        time = max(moved / BANDWIDTH, flops / RATE)
        numbers = f"{moved / 1e6:,.1f} | {flops / 1e9:,.1f} | {time * 1e6:,.1f} | {time / layer:.2%}"
        yield f"| {name} | {tokens:,} | {numbers} |"
    yield f"| one full-length layer | {tokens:,} | | {layer_flops(tokens) / 1e9:,.1f} | {layer * 1e6:,.1f} | 100% |"


@pytest.mark.parametrize("tokens", [6272, 50_000])
def test_costs(tokens):
    missing = [row for row in rows(tokens) if row not in PAGE]
    assert not missing, "\n".join(["missing:", *missing])


def test_costs_count_the_blocks_that_are_launched():
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from sharp_compile.kernels.near_copies.triton import tiles as near_copies_tiles
    from sharp_compile.kernels.received_attention.triton import tiles as received_attention_tiles

    assert received_attention_tiles(7 * ROWS, HEAD_DIM, torch.bfloat16).keys == received_attention._KEYS
    how = near_copies_tiles(torch.bfloat16)
    assert (how.block, how.tile) == (near_copies._BLOCK, near_copies._TILE)

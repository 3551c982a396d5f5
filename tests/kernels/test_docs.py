"""The numbers in docs/kernels.md are those of the `cost` functions, and of what is compiled."""

from pathlib import Path

import pytest
from sharp_compile.kernels.attention_column_sums import cost as attention_column_sums
from sharp_compile.kernels.greedy_cosine_dedup import cost as greedy_cosine_dedup
from sharp_compile.kernels.multi_gather.cost import cost as multi_gather

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
        "received attention": attention_column_sums.cost(1, HEADS, KV_HEADS, ROWS, tokens, HEAD_DIM, ELEMENT),
        "near copies, none found": greedy_cosine_dedup.cost(tokens, HIDDEN, kept, kept, ELEMENT),
        "near copies, all walked": greedy_cosine_dedup.cost(tokens, HIDDEN, tokens, kept, ELEMENT),
        "gather together": multi_gather(1, kept, values),
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
    from sharp_compile.kernels.attention_column_sums.triton import tiles as attention_column_sums_tiles
    from sharp_compile.kernels.greedy_cosine_dedup.triton import tiles as greedy_cosine_dedup_tiles

    assert attention_column_sums_tiles(7 * ROWS, HEAD_DIM, torch.bfloat16).keys == attention_column_sums._KEYS
    how = greedy_cosine_dedup_tiles(torch.bfloat16)
    assert (how.block, how.tile) == (greedy_cosine_dedup._BLOCK, greedy_cosine_dedup._TILE)

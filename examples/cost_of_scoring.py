"""How long scoring, selecting and gathering take beside the decoder layer that they sit in.

    python examples/cost_of_scoring.py [--tokens 4096] [--repeats 7] [--threads 2]

One decoder layer of Qwen2's shape at full length and the selection of `sharp` with its defaults, each compiled
by Inductor, run in turns; the table has the medians and their ratio. "still" is a video that does not move, whose
frames are near copies of each other, so that the deduplication has to walk through all tokens; in "moving" no
two tokens are alike.
"""

from __future__ import annotations

import argparse
import platform

import torch
from rich.console import Console
from rich.table import Table
from sharp_compile.kernels.keep import keep_counts, keep_positions
from sharp_compile.kernels.multi_gather import multi_gather
from torch.utils.benchmark import Timer
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding, rotate_half

from sharp_compile.options import Config
from sharp_compile.selector_registry import find_rule
from sharp_compile.selectors import Context
from sharp_compile.selectors.context import among

SHAPES = {
    "Qwen2-0.5B": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2, num_hidden_layers=1
    ),
    "Qwen2-1.5B": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2, num_hidden_layers=1
    ),
}
TEXT, TOKENS_PER_FRAME = 32, 196


def compiled(config: Qwen2Config, tokens: int, moves: bool, options: dict) -> tuple:
    """The layer and the selection, as functions without arguments."""
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    layer = Qwen2DecoderLayer(config, 0).eval()
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    hidden = torch.randn(1, tokens, config.hidden_size)
    unrotated = torch.randn(1, config.num_key_value_heads, tokens, width)
    if not moves:
        frame = torch.arange(tokens) % TOKENS_PER_FRAME
        hidden = hidden[:, frame] + 0.05 * hidden
        unrotated = unrotated[:, :, frame] + 0.05 * unrotated
    query = torch.randn(1, heads, tokens, width)
    cos, sin = Qwen2RotaryEmbedding(config)(hidden, torch.arange(tokens)[None])
    is_visual = torch.zeros(1, tokens, dtype=torch.bool)
    is_visual[:, TEXT // 2 : tokens - TEXT // 2] = True
    frame = ((is_visual.cumsum(1) - 1) // TOKENS_PER_FRAME).where(is_visual, -1)
    parsed = Config.parse(options)
    chosen, kept = find_rule(parsed), TEXT + parsed.cuts[0].kept(tokens - TEXT)

    def rotate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return keys * cos[:, None] + rotate_half(keys) * sin[:, None]

    def select(query, unrotated, hidden, is_visual, frame, cos, sin):  # type: ignore[no-untyped-def]
        key = rotate(unrotated, cos, sin)
        padding = torch.zeros_like(is_visual)
        kinds = is_visual, padding, padding
        state = among(query), heads, key, unrotated, hidden, is_visual, padding, frame, None, None
        counts = keep_counts(*kinds, is_visual.sum(1), kept)
        context = Context(*state, kept, counts.visual, 1, lambda k: rotate(k, cos, sin))
        positions = keep_positions(chosen.score(context), *kinds, counts, kept)
        return multi_gather([value[:, None] for value in (hidden, cos, sin)], positions)

    whole, selection = torch.compile(layer), torch.compile(select)
    return (
        lambda: whole(hidden, position_embeddings=(cos, sin)),
        lambda: selection(query, unrotated, hidden, is_visual, frame, cos, sin),
    )


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(
        title=f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    )
    for column in ("layer", "tokens", "video", "layer, ms", "selection, ms", "share"):
        table.add_column(column)
    for name, config in SHAPES.items():
        for tokens in arguments.tokens:
            for moves in (True, False):
                with torch.no_grad():
                    calls = compiled(config, tokens, moves, {"selector": "sharp"})
                    timers = [Timer("call()", globals={"call": call}, num_threads=arguments.threads) for call in calls]
                    times: list[list[float]] = [[], []]
                    for timer in timers:
                        timer.timeit(1)
                    for _ in range(arguments.repeats):
                        for timer, taken in zip(timers, times, strict=True):
                            taken.append(timer.timeit(1).mean * 1e3)
                layer, selection = (sorted(taken)[len(taken) // 2] for taken in times)
                video = "moving" if moves else "still"
                row = [name, str(tokens), video, f"{layer:.0f}", f"{selection:.1f}", f"{selection / layer:.1%}"]
                table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()

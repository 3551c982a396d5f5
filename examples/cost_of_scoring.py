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
from torch.utils.benchmark import Timer
from transformers import Qwen2Config

from sharp_compile.tools.bench.scoring import layer_and_selection

SHAPES = {
    "Qwen2-0.5B": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2, num_hidden_layers=1
    ),
    "Qwen2-1.5B": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2, num_hidden_layers=1
    ),
}


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
                    calls = layer_and_selection(config, tokens, moves, {"selector": "sharp"}, torch.float32, "cpu")
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

"""A row of the demo's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One way to run one model. Times in seconds; ``None`` stands for what the demo doesn't measure.

    ``flops`` and ``median_s`` are those of the whole prefill, the vision tower included, ``decoder_flops`` is the
    part without it. ``flop_limit`` is the speed-up over Inductor that the FLOPs alone would allow and
    ``fraction_of_limit`` how much of it is there. ``cache_lengths`` has one length for each layer.
    """

    name: str
    model: str
    layers: int
    sequence_length: int
    pruned_length: int
    retention: float
    layer: int | None
    median_s: float
    speedup_vs_inductor: float
    flops: int
    flop_limit: float
    fraction_of_limit: float
    compile_s: float
    decoder_flops: int
    cache_lengths: list[int]
    picture: str | None
    peak_bytes: int | None = None
    passes_s: float | None = None
    decode_s_per_token: float | None = None

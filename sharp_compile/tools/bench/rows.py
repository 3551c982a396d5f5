"""What the benchmark tells of each model, and writes to its JSON file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One way to run a prefill.

    Attributes:
        name: ``eager``, ``inductor``, ``handpatched`` (FastV by hand, in eager mode), ``sharp``, or ``sharp-end``: the
            same with the whole cut at the end of the scoring layer.
        model: the name of the decoder's shape.
        layers: how many it has here.
        hidden_size: its width here.
        dtype: the type of its weights.
        vision: whether a vision tower is in front of it, part of all that follows.
        selector: the rule, None where nothing is pruned.
        retention: share of the visual tokens kept, after the last cut.
        layer: that of the cut, the last one of several.
        sequence_length: S.
        pruned_length: S' after the last cut, S where nothing is pruned.
        median_s: seconds of a prefill, the median of the repeats.
        iqr_s: the range of the middle half of them.
        speedup_vs_inductor: the median of plain Inductor over this one.
        flops: floating-point operations of matrix products and attention, by PyTorch's counter.
        flop_limit: those of the unpruned model over these.
        fraction_of_limit: the speed-up over the limit.
        bytes_moved: what these products have to read and write at the least.
        roofline_s: how long this machine needs for them at its own best rates, measured in the same run.
        peak_bytes: the most that was allocated at a time in a prefill, beside the weights.
        seconds_by_kind: where the time of one prefill went, under a profiler, by ``bench.measure.KINDS``.
        compile_s: how much longer the first call took.
        compile_stages: what that was spent on, in seconds, by ``timing.STAGES``.
        passes_s: what of that our passes took; None where none ran.
        distinct_layers: how many layers of the pruned graph have code of their own; None where nothing is pruned.
        decode_s_per_token: seconds of a decoding step after the prefill.
    """

    name: str
    model: str
    layers: int
    hidden_size: int
    dtype: str
    vision: bool
    selector: str | None
    retention: float | None
    layer: int | None
    sequence_length: int
    pruned_length: int
    median_s: float
    iqr_s: float
    speedup_vs_inductor: float
    flops: int
    flop_limit: float
    fraction_of_limit: float
    bytes_moved: int
    roofline_s: float
    peak_bytes: int
    seconds_by_kind: dict[str, float]
    compile_s: float
    compile_stages: dict[str, float]
    passes_s: float | None
    distinct_layers: int | None
    decode_s_per_token: float | None


@dataclass(frozen=True)
class MetaRow:
    """One prefill that was counted and not run.

    Attributes:
        name: ``unpruned`` or ``sharp``.
        model: the name of the decoder's shape.
        layers: how many it has.
        retention: share of the visual tokens kept.
        layer: that of the cut.
        sequence_length: S.
        pruned_length: S'.
        flops: floating-point operations of matrix products and attention.
        flops_share: of those of the unpruned model.
        bytes_moved: what these products have to read and write at the least.
        kv_bytes: what the cache holds after the prefill.
        activation_peak_bytes: the most that is held at a time beside weights and inputs, the cache included.
        square_tensors: how many tensors with two axes of S are made.
    """

    name: str
    model: str
    layers: int
    retention: float
    layer: int | None
    sequence_length: int
    pruned_length: int
    flops: int
    flops_share: float
    bytes_moved: int
    kv_bytes: int
    activation_peak_bytes: int
    square_tensors: int


@dataclass(frozen=True)
class PeakRow:
    """The memory of one pruned prefill.

    Attributes:
        name: ``sharp``.
        model: the name of the decoder's shape.
        layers: how many it has here.
        hidden_size: its width here.
        dtype: the type of its weights.
        mask: whether the prompt came with an attention mask.
        selector: the rule.
        retention: share of the visual tokens kept, after the last cut.
        layer: that of the cut, the last one of several.
        sequence_length: S.
        pruned_length: S' after the last cut.
        peak_bytes: the most that was allocated at a time, beside the weights.
    """

    name: str
    model: str
    layers: int
    hidden_size: int
    dtype: str
    mask: bool
    selector: str
    retention: float
    layer: int
    sequence_length: int
    pruned_length: int
    peak_bytes: int

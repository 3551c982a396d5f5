"""What the check tells, and writes to its JSON file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """What this machine has, or can run: ``name`` and ``value`` in words."""

    name: str
    value: str


@dataclass(frozen=True)
class Verdict:
    """Whether something is right.

    Attributes:
        stage: of ``run``, such as ``kernels``.
        name: what was compared.
        right: None where it was not run, for want of time or of what it needs.
        told: what was compared, and how far off it was; or why it is wrong, or was not run.
        seconds: what it took.
    """

    stage: str
    name: str
    right: bool | None
    told: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Prefill:
    """One way to run a prefill, measured.

    Attributes:
        way: ``eager``, ``inductor``, ``sharp`` or ``sharp, cudagraphs``.
        visual_tokens: of the prompt.
        retention: share of them that is kept, None where nothing is pruned.
        mask: whether the prompt came with an attention mask.
        sequence_length: S.
        pruned_length: S', S where nothing is pruned.
        median_s: seconds of a prefill, by the device's own clock: the median of the repeats.
        spread_s: the range of the middle half of them.
        first_token_s: seconds from the call to the number of the first token, on the host: median.
        peak_bytes: the most that was allocated at a time, beside weights and inputs.
        repeats: how often it was timed.
    """

    way: str
    visual_tokens: int
    retention: float | None
    mask: bool
    sequence_length: int
    pruned_length: int
    median_s: float
    spread_s: float
    first_token_s: float
    peak_bytes: int
    repeats: int


@dataclass(frozen=True)
class Counted:
    """Floating-point operations of one prefill: matrix products and attention.

    ``visual_tokens`` and ``retention`` are those of ``Prefill``.
    """

    visual_tokens: int
    retention: float | None
    flops: int


@dataclass(frozen=True)
class Scoring:
    """What scoring, selecting and gathering take beside a decoder layer of the whole sequence.

    Attributes:
        tokens: S.
        moves: whether the video moves; the frames of one that does not are near copies, which deduplication walks
            through.
        layer_s: seconds of a decoder layer that Inductor compiled, median.
        scoring_s: seconds of the selection, median.
    """

    tokens: int
    moves: bool
    layer_s: float
    scoring_s: float


@dataclass(frozen=True)
class Kernel:
    """A kernel of one prefill, or on a CPU an operator: its name, how often it ran, and seconds of all its runs."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Where the time of one pruned prefill went.

    Attributes:
        way: as in ``Prefill``, with ``visual_tokens`` and ``retention``.
        span_s: seconds from the first kernel's start to the last one's end.
        busy_s: of these, seconds in which the device ran a kernel.
        waits: how many gaps of 10 microseconds or more there were between kernels, in which it waited for the host.
        longest_wait_s: the longest of them.
        kernels: the ten that took the most, in falling order.
    """

    way: str
    visual_tokens: int
    retention: float
    span_s: float
    busy_s: float
    waits: int
    longest_wait_s: float
    kernels: tuple[Kernel, ...]


Result = Fact | Verdict | Prefill | Counted | Scoring | Profile

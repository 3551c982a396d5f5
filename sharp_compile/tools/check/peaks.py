"""Whether the peak of memory grows with the tokens of a prompt, not with their square, as a mask of all pairs does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .plan import Way
from .rows import Prefill, Verdict

_MOST = 1.1
"""The share by which a peak may be larger than what is right."""


def compared(measured: Sequence[Prefill]) -> Iterator[Verdict]:
    """Yield verdicts on the peak of the last prefill beside those before it, of the same way, where it is pruned.

    One with a mask may need no more than the same without, and a longer one more by what it is longer.
    """
    *before, last = measured
    if last.way != "sharp":
        return
    for each in before:
        if (each.way, each.retention) != (last.way, last.retention):
            continue
        if each.visual_tokens == last.visual_tokens and each.mask != last.mask:
            yield _mask(*sorted((each, last), key=lambda row: row.mask))
        elif each.mask == last.mask and each.visual_tokens != last.visual_tokens:
            yield _length(*sorted((each, last), key=lambda row: row.sequence_length))


def _mask(without: Prefill, masked: Prefill) -> Verdict:
    return _verdict(masked, "with a mask beside none", masked.peak_bytes / without.peak_bytes, 1.0)


def _length(short: Prefill, long: Prefill) -> Verdict:
    grown = long.sequence_length / short.sequence_length
    name = f"{'with' if long.mask else 'without'} a mask beside that of {short.visual_tokens:,}"
    return _verdict(long, name, long.peak_bytes / short.peak_bytes, grown)


def _verdict(row: Prefill, name: str, found: float, right: float) -> Verdict:
    what = f"peak of {Way(row.way, row.retention).in_words}, {row.visual_tokens:,} tokens, {name}"
    told = f"{found:.2f} times as much, and may be {_MOST * right:.2f} times"
    return Verdict("prefill", what, found <= _MOST * right, told)

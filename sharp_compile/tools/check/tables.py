"""The tables of the check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from rich import box
from rich.table import Table

from .rows import Counted, Fact, Prefill, Profile, Result, Scoring, Verdict

Kind = TypeVar("Kind", bound=Result)
_MARKS = {True: "[green]right[/]", False: "[red]WRONG[/]", None: "not run"}


def all_of(found: Sequence[Result]) -> Iterator[Table]:
    """Yield a table of each kind of result that there is."""
    for kind, table in (
        (Fact, _facts),
        (Verdict, _verdicts),
        (Prefill, _prefills),
        (Scoring, _scoring),
        (Profile, _profile),
    ):
        if _of(found, kind):
            yield table(found)


def conclusion(found: Sequence[Result], seconds: float) -> str:
    """Return what it comes to, in a line or a few."""
    verdicts = _of(found, Verdict)
    wrong = [each for each in verdicts if each.right is False]
    missing = [each for each in verdicts if each.right is None]
    took = f"{seconds:.0f} s."
    lines = [f"{len(wrong)} of {len(verdicts)} comparisons are wrong. {took}" if wrong else f"All right. {took}"]
    lines += [f"wrong: {each.name}: {each.told}" for each in wrong]
    if missing:
        lines.append(f"{len(missing)} not run, for want of time or of what they need: the table says which.")
    return "\n".join(lines)


def _of(found: Sequence[Result], kind: type[Kind]) -> list[Kind]:
    return [each for each in found if isinstance(each, kind)]


def _table(title: str, *headings: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left")
    return table


def _facts(found: Sequence[Result]) -> Table:
    table = _table("This machine", "", "")
    for each in _of(found, Fact):
        table.add_row(each.name, each.value)
    return table


def _verdicts(found: Sequence[Result]) -> Table:
    table = _table("Right by definition?", "stage", "what", "", "how it was compared", "s", right=("s",))
    for each in _of(found, Verdict):
        table.add_row(each.stage, each.name, _MARKS[each.right], each.told, f"{each.seconds:.1f}")
    return table


def _prefills(found: Sequence[Result]) -> Table:
    """Speed-ups are over Inductor; the limit is what the operations allow."""
    numbers = "ms", "spread", "speed-up", "limit", "of it", "first token", "peak GB"
    table = _table("Prefill", "tokens", "mask", "way", *numbers, right=numbers)
    flops = {(each.visual_tokens, each.retention): each.flops for each in _of(found, Counted)}
    prefills = sorted(_of(found, Prefill), key=lambda each: (each.visual_tokens, not each.mask))
    for (visual, mask), group in groupby(prefills, lambda each: (each.visual_tokens, each.mask)):
        ways = list(group)
        plain = next((each.median_s for each in ways if each.way == "inductor"), None)
        for each in ways:
            speedup = plain / each.median_s if plain is not None else None
            full, own = flops.get((visual, None)), flops.get((visual, each.retention))
            limit = full / own if full and own else None
            kept = "" if each.retention is None else f", {each.retention:.0%}"
            table.add_row(
                f"{each.sequence_length:,}" + (f" > {each.pruned_length:,}" if kept else ""),
                "yes" if mask else "no",
                each.way + kept,
                f"{1e3 * each.median_s:.1f}",
                f"{1e3 * each.spread_s:.1f}",
                "" if speedup is None else f"{speedup:.2f}x",
                "" if limit is None or not kept else f"{limit:.2f}x",
                "" if speedup is None or limit is None or not kept else f"{speedup / limit:.0%}",
                f"{1e3 * each.first_token_s:.1f}",
                f"{each.peak_bytes / 1e9:.2f}",
            )
    table.caption = "\n".join(_costs_of_masks(prefills)) or None
    return table


def _costs_of_masks(prefills: Sequence[Prefill]) -> Iterator[str]:
    without = {(each.way, each.visual_tokens, each.retention): each for each in prefills if not each.mask}
    for each in prefills:
        other = without.get((each.way, each.visual_tokens, each.retention))
        if each.mask and other is not None and each.way in ("inductor", "sharp"):
            kept = "" if each.retention is None else f", {each.retention:.0%}"
            yield (
                f"The mask of {each.sequence_length:,} x {each.sequence_length:,} "
                f"({each.sequence_length**2 / 1e6:,.0f} M entries) costs {each.way}{kept} "
                f"{1e3 * (each.median_s - other.median_s):+.1f} ms, {each.median_s / other.median_s - 1:+.0%}, "
                f"and {(each.peak_bytes - other.peak_bytes) / 1e9:+.2f} GB"
            )


def _scoring(found: Sequence[Result]) -> Table:
    numbers = "layer, ms", "scoring, ms", "share"
    table = _table("Scoring and selecting beside one decoder layer", "tokens", "video", *numbers, right=numbers)
    for each in _of(found, Scoring):
        table.add_row(
            f"{each.tokens:,}",
            "moves" if each.moves else "is still",
            f"{1e3 * each.layer_s:.2f}",
            f"{1e3 * each.scoring_s:.2f}",
            f"{each.scoring_s / each.layer_s:.0%}",
        )
    return table


def _profile(found: Sequence[Result]) -> Table:
    (each, *_) = _of(found, Profile)
    title = f"Where a prefill spends its time: {each.way}, {each.retention:.0%} of {each.visual_tokens:,} tokens"
    table = _table(title, "kernel", "runs", "ms", "share", right=("runs", "ms", "share"))
    for kernel in each.kernels:
        share = kernel.seconds / each.span_s
        table.add_row(kernel.name[:90], str(kernel.count), f"{1e3 * kernel.seconds:.2f}", f"{share:.0%}")
    table.caption = (
        f"{1e3 * each.span_s:.1f} ms from the first to the last, busy for {1e3 * each.busy_s:.1f} ms; "
        f"{each.waits} waits of 10 us or more, the longest {1e3 * each.longest_wait_s:.2f} ms"
    )
    return table

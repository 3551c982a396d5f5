"""The three parts of ShaRP as options: what may be given for each, and what it becomes.

Each is a value for every day (a name, a number) or a mapping that sets its fields; see ``docs/method.md`` for
what they do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from .calibration import Calibration
from .short_repr import short_repr

SCOPES = ("scores", "forward")
FORMS = ("logit", "subtract", "ratio")
FEATURES = ("keys", "hidden")
INT64_BOUND = 2**63
"""Integers stay below it: they are computed with as those of tensors are."""

_MAX_LETTERS = 64  # of a misspelt name


@dataclass(frozen=True)
class Segment:
    """Segment-aware causal masking.

    Attributes:
        scope: what the mask steers: only the ``"scores"``, or the ``"forward"`` pass of layers ``0..layer``.
        frames: how many frames a segment has; not together with ``count``.
        count: how many segments a row has, cut where neighbouring frames differ most.
        tokens_per_frame: how many tokens a frame has, where the graph does not show it.
    """

    scope: str = "scores"
    frames: int | None = None
    count: int | None = None
    tokens_per_frame: int | None = None


@dataclass(frozen=True)
class Debias:
    """Positional debiasing.

    Attributes:
        profile: what position alone explains: ``"rotary"``, or a measured ``Calibration``.
        form: how it is taken off: from the logits (``"logit"``, only of the rotary profile), from the
            probabilities (``"subtract"``), or as their ``"ratio"``. None is the best that the profile has.
    """

    profile: str | Calibration = "rotary"
    form: str | None = None


@dataclass(frozen=True)
class Dedup:
    """Token deduplication.

    Attributes:
        threshold: the cosine similarity above which a token is a near copy of another.
        on: what is compared: the ``"hidden"`` states that enter the layer, or its ``"keys"`` without their positions.
    """

    threshold: float = 0.9
    on: str = "hidden"


def parse_segment(value: Any) -> Segment:
    """Return the ``Segment`` that ``value`` stands for: one of ``SCOPES``, or a mapping of its fields.

    Raises:
        ValueError: with what is allowed.
    """
    part = Segment(scope=value) if isinstance(value, str) else Segment(**_given(value, Segment, SCOPES))
    _one_of("scope", part.scope, SCOPES)
    for name in ("frames", "count", "tokens_per_frame"):
        number = getattr(part, name)
        if number is None:
            continue
        if not isinstance(number, Integral) or isinstance(number, bool) or not 1 <= int(number) < INT64_BOUND:
            raise ValueError(f"{name}={short_repr(number)} must be an integer, 1 or more and below 2**63")
    if part.frames is not None and part.count is not None:
        raise ValueError("give frames (of a segment) or count (of segments), not both")
    return part if part.count is not None else Segment(part.scope, part.frames or 1, None, part.tokens_per_frame)


def parse_debias(value: Any) -> Debias:
    """Return the ``Debias`` that ``value`` stands for: ``"rotary"``, a ``Calibration``, or a mapping of its fields.

    Raises:
        ValueError: with what is allowed.
    """
    is_profile = isinstance(value, str | Calibration)
    part = Debias(value) if is_profile else Debias(**_given(value, Debias, ("rotary", "a Calibration")))
    if isinstance(part.profile, Calibration):
        form = "subtract" if part.form is None else part.form
        _one_of("form", form, FORMS[1:])
    else:
        _one_of("profile", part.profile, ("rotary",), " or what sharp_compile.calibrate returns")
        form = "logit" if part.form is None else part.form
        _one_of("form", form, FORMS)
    return Debias(part.profile, form)


def parse_dedup(value: Any) -> Dedup:
    """Return the ``Dedup`` that ``value`` stands for: one of ``FEATURES``, a threshold, or a mapping of its fields.

    Raises:
        ValueError: with what is allowed.
    """
    if isinstance(value, str):
        part = Dedup(on=value)
    elif isinstance(value, Real) and not isinstance(value, bool):
        part = Dedup(threshold=float(value))
    else:
        part = Dedup(**_given(value, Dedup, (*FEATURES, "a threshold")))
    _one_of("on", part.on, FEATURES)
    threshold = part.threshold
    if not isinstance(threshold, Real) or isinstance(threshold, bool) or not -1 <= threshold <= 1:
        raise ValueError(f"threshold={short_repr(threshold)} must be a cosine similarity, a number from -1 to 1")
    return Dedup(float(threshold), part.on)


def nearest(misspelt: object, known: Iterable[str]) -> str:
    """Return a hint to end an error with: which ``known`` name was meant; "" where none is near."""
    if not isinstance(misspelt, str):
        return ""
    names = difflib.get_close_matches(misspelt[:_MAX_LETTERS].lower(), known, n=1)
    return "".join(f"; the nearest known name is {name!r}" for name in names)


def _given(value: Any, part: type, short: tuple[str, ...]) -> dict[str, Any]:
    """``value`` as the fields of ``part``."""
    known = [field.name for field in fields(part)]
    if not isinstance(value, Mapping):
        raise ValueError(f"must be None, {', '.join(short)}, or a mapping of {', '.join(known)}")
    for name in value:
        if name not in known:
            raise ValueError(
                f"there is no field {short_repr(name)}, there are {', '.join(known)}{nearest(name, known)}"
            )
    return dict(value)


def _one_of(name: str, value: object, known: tuple[str, ...], more: str = "") -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={short_repr(value)} must be one of {', '.join(known)}{more}{nearest(value, known)}")

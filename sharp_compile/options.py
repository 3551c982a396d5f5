"""What the user asked for: an options mapping in, a frozen ``Config`` out.

Everything a user can get wrong in ``options={...}`` is refused in this file, before any graph is looked at,
with a ``ValueError`` that names the option, the value, what is allowed and, for a misspelt name, the nearest
known one. The rest of the package reads a ``Config`` and never doubts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypeVar, get_origin

import torch

from .calibration import Calibration, is_measurement
from .selector_registry import selector_names
from .sharp_options import INT64_BOUND, Debias, Dedup, Segment, nearest, parse_debias, parse_dedup, parse_segment
from .short_repr import short_repr

Length = TypeVar("Length", int, torch.SymInt, torch.Tensor)
"""A count of tokens: a number, a symbol under dynamic shapes, or the counts of several rows."""

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "retention": 0.10,
        "layer": 1,
        "stages": None,
        "modality": "visual",
        "selector": "sharp",
        "segment": "scores",
        "debias": "rotary",
        "dedup": "hidden",
        "seed": 0,
        "hoist": True,
        "reuse_layers": True,
        "flash_attention": "sdpa",
        "inner": "inductor",
        "inductor": MappingProxyType({}),
        "on_skip": "warn",
    }
)
"""Every option there is, with the value it has when it isn't given."""

PARTS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"segment": parse_segment, "debias": parse_debias, "dedup": parse_dedup}
)
"""The three parts of ShaRP, each with what reads its value, unless that is `None` (off)."""

FLASH_ATTENTION = ("sdpa", "keep")
"""What ``sharp_compile.compile`` can do about a language model that was loaded with FlashAttention."""

ON_SKIP = ("warn", "raise", "silent")
"""What can be done about a graph that has visual tokens and can't be pruned."""

MODALITIES = ("visual", "audio", "all")
"""Which of the injected features can be pruned."""

MILLION = 10**6
A_NATURAL = "an integer, 0 or more and below 2**63"
A_RETENTION = "a number above 0 and at most 1, to six decimals"


class BadOption(ValueError):
    """An option that can't be taken; the message names it, its value, and what is allowed."""


@dataclass(frozen=True)
class Cut:
    """One place where the sequence gets shorter: after ``layer``, to the share ``numerator / denominator``.

    The share is one of the *original* visual tokens, at every cut. It is a reduced fraction, so that the
    number of kept tokens is integer arithmetic, which symbols can do too, and exact: ``0.07 * 100`` is above 7.
    """

    layer: int
    numerator: int
    denominator: int

    def kept(self, visual: Length) -> Length:
        """Return how many of ``visual`` tokens are kept: ``ceil(share * visual)``.

        Args:
            visual: An ``int``, a ``torch.SymInt``, an int64 tensor or a ``sympy`` expression.

        Returns:
            The same kind of number. Nothing is compared on the way, so a symbol gets no guard.
        """
        return (visual * self.numerator + self.denominator - 1) // self.denominator


@dataclass(frozen=True)
class Config:
    """The validated options of one ``sharp`` backend; make one with ``Config.parse``.

    ``retention``, ``layer`` and ``stages`` have become ``cuts``, which is never empty. ``segment``, ``debias`` and
    ``dedup`` are ``None`` unless the selector is ``"sharp"``. ``inductor`` holds its patches as sorted pairs.
    """

    cuts: tuple[Cut, ...]
    modality: str
    selector: str | Callable[[Any], Any]
    segment: Segment | None
    debias: Debias | None
    dedup: Dedup | None
    seed: int
    hoist: bool
    reuse_layers: bool
    flash_attention: str
    inner: str | Callable[..., Any]
    inductor: tuple[tuple[str, Any], ...]
    on_skip: str

    @property
    def tokens_per_frame(self) -> int | None:
        """How many visual tokens a frame has, where the user told."""
        return None if self.segment is None else self.segment.tokens_per_frame

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None = None) -> Config:
        """Check the user's options and fill in the defaults.

        Args:
            options: What was given as ``torch.compile(..., options=options)``; ``None`` is the same as ``{}``.

        Returns:
            The configuration; changing ``options`` later on doesn't change it.

        Raises:
            ValueError: An option's name is unknown, its value is bad, or two options contradict each other. So it
                does where a method of a value's own raises whatever it does.
        """
        given = _given(options)
        values = {**DEFAULTS, **given}

        def read(name: str, reader: Callable[..., Any], *others: object) -> Any:
            with _reading(name, values[name]):
                return reader(values[name], *others)

        selector, inner = read("selector", _selector), read("inner", _inner)
        cuts = _cuts(values, given)
        debias = _part("debias", given, selector)
        _check_calibration(debias, cuts)
        return cls(
            cuts=cuts,
            modality=read("modality", _modality),
            selector=selector,
            segment=_part("segment", given, selector),
            debias=debias,
            dedup=_part("dedup", given, selector),
            seed=read("seed", _seed),
            hoist=read("hoist", _flag, "hoist"),
            reuse_layers=read("reuse_layers", _flag, "reuse_layers"),
            flash_attention=read("flash_attention", _flash_attention),
            inner=inner,
            inductor=read("inductor", _inductor, inner),
            on_skip=read("on_skip", _on_skip),
        )


def with_mode(options: Mapping[str, Any] | None, mode: str | None) -> Mapping[str, Any] | None:
    """Return the options with those of Inductor that a mode of ``torch.compile`` stands for; the user's own come first.

    Raises:
        ValueError: for a mode that Inductor does not have.
    """
    if mode is None:
        return options
    from torch._inductor import list_mode_options

    modes = list_mode_options()
    if mode not in modes:
        raise BadOption(f"mode={short_repr(mode)} is none of Inductor's modes: {', '.join(map(repr, modes))}")
    given = {} if options is None else options
    own = given.get("inductor", {})
    # What is no mapping is refused with all else.
    return {**given, "inductor": {**modes[mode], **own}} if modes[mode] and isinstance(own, Mapping) else options


def _refusal(name: object, value: object, reason: str) -> BadOption:
    """Return the error that refuses ``value`` for option ``name``."""
    return BadOption(f"option {name if type(name) is str else short_repr(name)}={short_repr(value)}: {reason}")


@contextmanager
def _reading(name: str, value: object) -> Iterator[None]:
    """Let what the methods of ``value`` raise name the option: it may compare, convert or iterate in its own way."""
    try:
        yield
    except BadOption:
        raise
    except Exception as error:
        raise _refusal(name, value, f"can't be read, it raises {type(error).__name__}") from error


def _given(options: Any) -> dict[str, Any]:
    """Return the options that were given, all of them known by name."""
    try:
        # Not all that `dict` takes: of a pair it makes a list first, however long that is.
        if not isinstance(options, Mapping | None):
            raise TypeError(f"{type(options).__name__} is no mapping")
        given = dict(options or {})
    except Exception as error:
        raise BadOption(f"options={short_repr(options)}: must be a mapping of names to values") from error
    for name, value in given.items():
        if type(name) is not str or name not in DEFAULTS:
            hint = nearest(name, DEFAULTS) if type(name) is str else ""
            known = f"no such option, there are {', '.join(DEFAULTS)}{hint}"
            raise _refusal(name, value, known)
    return given


def _named(value: object, known: Iterable[str]) -> str | None:
    """Return the name among ``known`` that ``value`` is, if it is text, else ``None``."""
    return next((name for name in known if isinstance(value, str) and name == value), None)


def _natural(value: object) -> int | None:
    """Return ``value`` as an ``int`` if it is an integer of any type, 0 or more and not huge, else ``None``."""
    # bool is registered as an integer, but True is no layer and no seed.
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < INT64_BOUND:
        return int(value)
    return None


def _share(value: object) -> Fraction | None:
    """Return ``value`` to six decimals if it is a real number in (0, 1] that stays above 0, else ``None``."""
    # Compared before float(), which an integer may be too large for. NaN is not <= 1, nor is it <= 0.
    if isinstance(value, Real) and not isinstance(value, bool) and value <= 1 and not value <= 0:
        return Fraction(round(Fraction(float(value)) * MILLION), MILLION) or None
    return None


def _cuts(values: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Cut, ...]:
    """Return the cuts that ``stages`` asks for, or the one of ``layer`` and ``retention``."""
    if values["stages"] is not None:
        for name in ("retention", "layer"):
            if name in given:
                raise _refusal(name, given[name], "give it or stages, not both")
        with _reading("stages", values["stages"]):
            return _stages(values["stages"])
    with _reading("layer", values["layer"]):
        layer = _natural(values["layer"])
    if layer is None:
        raise _refusal("layer", values["layer"], f"must be {A_NATURAL}")
    with _reading("retention", values["retention"]):
        share = _share(values["retention"])
    if share is None:
        raise _refusal("retention", values["retention"], f"must be {A_RETENTION}")
    return (Cut(layer, share.numerator, share.denominator),)


def _stages(value: object) -> tuple[Cut, ...]:
    """Return one cut for each (layer, retention) pair."""
    refusal = _refusal(
        "stages",
        value,
        "must be None or a sequence of one or more pairs (layer, retention), the layers ascending and the"
        f" retentions descending; a layer is {A_NATURAL}; a retention is {A_RETENTION}",
    )
    if not isinstance(value, Sequence) or len(value) == 0:
        raise refusal
    stages: list[tuple[int, Fraction]] = []
    for pair in value:
        match pair:
            case [first, second] if (layer := _natural(first)) is not None and (share := _share(second)):
                stages.append((layer, share))
            case _:
                raise refusal
    if any(before[0] >= after[0] or before[1] <= after[1] for before, after in pairwise(stages)):
        raise refusal
    return tuple(Cut(layer, share.numerator, share.denominator) for layer, share in stages)


def _selector(value: Any) -> str | Callable[[Any], Any]:
    """Return the name of a rule, or the user's own scoring function."""
    if callable(value):
        return value
    known = selector_names()
    if name := _named(value, known):
        return name
    allowed = f"must be a function score(ctx) or one of {', '.join(known)}"
    raise _refusal("selector", value, allowed + nearest(value, known))


def _part(name: str, given: Mapping[str, Any], selector: object) -> Any:
    """Return a part of ShaRP; ``None`` if it is off or the selector isn't ShaRP."""
    is_sharp = isinstance(selector, str) and selector == "sharp"
    value = given.get(name, DEFAULTS[name] if is_sharp else None)
    if value is None:
        return None
    if not is_sharp:
        raise _refusal(name, value, f"must be None with selector={short_repr(selector)}, it is a part of 'sharp'")
    with _reading(name, value):
        try:
            return PARTS[name](value)
        except ValueError as reason:
            raise _refusal(name, value, str(reason)) from None


def _check_calibration(debias: Debias | None, cuts: tuple[Cut, ...]) -> None:
    """Refuse a calibration that holds no measurement, or that was not measured where the scores are."""
    if debias is None or not isinstance(debias.profile, Calibration):
        return
    profile, layers = debias.profile, [cut.layer for cut in cuts]
    with _reading("debias", profile):
        if layers != [profile.layer]:
            raise _refusal(
                "debias", profile, f"it was measured at layer {short_repr(profile.layer)}, the cuts are after {layers}"
            )
        if not profile.profiles:
            raise _refusal("debias", profile, "it holds no measurement, see sharp_compile.calibrate")
        for visual, each in profile.profiles.items():
            if _natural(visual) in (None, 0) or not is_measurement(each, visual):
                raise _refusal("debias", profile, f"profiles[{short_repr(visual)}] must be finite numbers, one a token")


def _modality(value: object) -> str:
    """Return which of the injected features are pruned."""
    if name := _named(value, MODALITIES):
        return name
    raise _refusal("modality", value, f"must be one of {', '.join(MODALITIES)}{nearest(value, MODALITIES)}")


def _seed(value: object) -> int:
    """Return the seed."""
    seed = _natural(value)
    if seed is None:
        raise _refusal("seed", value, f"must be {A_NATURAL}")
    return seed


def _flag(value: object, name: str) -> bool:
    """Return whether what an option is about is done."""
    if isinstance(value, bool):
        return value
    raise _refusal(name, value, "must be True or False")


def _inner(value: Any) -> str | Callable[..., Any]:
    """Return the backend that compiles the rewritten graph: a name that Dynamo knows, or a function."""
    if callable(value):
        return value
    # Imported here because it loads all of Dynamo, which `import sharp_compile` alone has no use for.
    from torch._dynamo.backends.registry import list_backends

    # "sharp" would be handed its own result for ever.
    known = [name for name in list_backends(exclude_tags=()) if name != "sharp"]
    if name := _named(value, known):
        return name
    allowed = f"must be a function (gm, example_inputs) or a backend other than 'sharp': {', '.join(known)}"
    raise _refusal("inner", value, allowed + nearest(value, known))


def _inductor(value: object, inner: object) -> tuple[tuple[str, Any], ...]:
    """Return the config patches under Inductor's own names, checked as ``torch.compile`` checks its options."""
    if not isinstance(value, Mapping):
        raise _refusal("inductor", value, "must be a mapping of names in torch._inductor.config to values")
    given = dict(value)
    if not given:
        return ()
    if not isinstance(inner, str) or inner != "inductor":
        raise _refusal("inductor", value, f"must be empty with inner={short_repr(inner)}, which doesn't read it")
    from torch._inductor import config

    current = config.get_config_copy()
    patches: dict[str, Any] = {}
    for name, patch in given.items():
        option = f"inductor[{short_repr(name)}]"
        with _reading(option, patch):
            attribute = str(name).replace("-", "_")
            if attribute not in current:
                allowed = f"the name must be one in torch._inductor.config{nearest(name, current)}"
                raise _refusal(option, patch, allowed)
            expected = config.get_type(attribute)  # type: ignore[attr-defined]  # config modules gain it at run time
            # As in torch, generic and union types aren't asked; nor are annotations that are still text.
            if get_origin(expected) is None and isinstance(expected, type) and not isinstance(patch, expected):
                raise _refusal(option, patch, f"must be of type {expected.__name__}")
        patches[attribute] = patch
    return tuple(sorted(patches.items()))


def _flash_attention(value: object) -> str:
    """Return what becomes of a language model that was loaded with FlashAttention."""
    if name := _named(value, FLASH_ATTENTION):
        return name
    allowed = f"must be one of {', '.join(FLASH_ATTENTION)}{nearest(value, FLASH_ATTENTION)}"
    raise _refusal("flash_attention", value, allowed)


def _on_skip(value: object) -> str:
    """Return what to do about a graph that can't be pruned."""
    if name := _named(value, ON_SKIP):
        return name
    raise _refusal("on_skip", value, f"must be one of {', '.join(ON_SKIP)}{nearest(value, ON_SKIP)}")

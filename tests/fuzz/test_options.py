"""Any options at all: a `Config`, or a `ValueError` that names the option."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Real

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sharp_compile.calibration import Calibration
from sharp_compile.options import DEFAULTS, ON_SKIP, Config
from sharp_compile.selector_registry import selector_names
from sharp_compile.sharp_options import FEATURES, FORMS, SCOPES


def fails(*_, **__):
    raise RuntimeError("a method of the value's own")


# Objects of which one method fails each, and one of which all do.
SPECIAL = (
    *("__eq__", "__repr__", "__bool__", "__len__", "__iter__", "__getitem__", "__int__", "__index__", "__float__"),
    *("__le__", "__lt__", "__ge__", "__gt__", "__contains__", "__str__", "__mod__", "__abs__"),
)


def hostile(*bases, methods=SPECIAL):
    return type("Hostile", bases, {name: fails for name in methods} | {"__hash__": bases[0].__hash__})


HOSTILE = [
    *(hostile(object, methods=[name])() for name in SPECIAL),
    hostile(object)(),
    *(hostile(base, methods=set(SPECIAL) - {"__index__"})(value) for base, value in ((int, 1), (float, 0.5))),
    *(hostile(str, methods=methods)("sharp") for methods in (SPECIAL, ["__eq__"], ["__repr__"], ["__iter__"])),
    hostile(list, methods=["__len__"])([1]),
    hostile(dict, methods=["__iter__", "keys", "items"])(scope="scores"),
    hostile(list)([(1, 0.5)]),
    type("Endless", (), {"__repr__": lambda self: "x" * 10**6})(),
]


# hypothesis asks for the class of what it makes: this one is only for the test that tries each.
ODD = type("Odd", (), {"__class__": property(fails)})()


class Everything(Mapping):
    """A mapping that has any name and can't be iterated."""

    def __getitem__(self, name):
        return name

    def __iter__(self):
        raise RuntimeError("no end of names")

    def __len__(self):
        return 1


class NotANumber:
    """Says that it is a number."""


Real.register(NotANumber)


def is_name(value):
    try:
        return value in {value} and value == value and value != 0
    except Exception:
        return False


OF_ITSELF: list = [1, 0.5]
OF_ITSELF.append(OF_ITSELF)
LAUGHS: list = ["ha"]
for _ in range(60):
    LAUGHS = [LAUGHS, LAUGHS]
BY_ITSELF: dict = {"scope": "scores"}
BY_ITSELF["frames"] = BY_ITSELF


def one_of_many(values):
    """One of values that hypothesis can't show."""
    return st.sampled_from(range(len(values))).map(lambda place: values[place])


NAMES = st.sampled_from(
    [*DEFAULTS, "scope", "frames", "count", "tokens_per_frame", "profile", "form", "threshold", "on"]
)
WORDS = st.sampled_from(
    [*selector_names(), *ON_SKIP, *SCOPES, *FORMS, *FEATURES, "rotary", "eager", "inductor", "sharp"]
)
NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.integers(),
    st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**400, -(10**400)]),
    st.floats(),
    st.floats(0, 1),
    st.fractions(),
    st.decimals(),
    st.complex_numbers(),
    st.sampled_from([Fraction(1, 10**400), Decimal("NaN"), np.float16(0.5), np.longdouble(0.1), np.bool_(True)]),
    st.sampled_from([np.int8(-1), np.uint64(2**64 - 1), np.datetime64("now"), np.array(0.1), np.array([1, 2])]),
    st.sampled_from([torch.tensor(0.1), torch.tensor([1, 2]), torch.empty(3, device="meta"), torch.float32]),
)
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    WORDS,
    TEXT,
    st.binary(max_size=5),
    one_of_many([*HOSTILE, Everything(), NotANumber(), OF_ITSELF, BY_ITSELF, "x" * 10**4, 10**5000]),
    st.sampled_from([fails, print, torch.nn.Linear, torch.nn.Identity(), range(10**9), itertools.count(), object]),
)
HASHABLE = st.one_of(
    NAMES,
    TEXT,
    st.integers(),
    st.none(),
    st.tuples(st.integers(), st.floats()),
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.tuples(inner, inner), max_size=3),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Calibration, inner, inner),
        st.builds(Calibration, st.integers(0, 2), st.dictionaries(HASHABLE, inner, max_size=2)),
    ),
    max_leaves=8,
)


CASES = st.one_of(
    st.dictionaries(st.sampled_from(list(DEFAULTS)), VALUES, max_size=3), st.dictionaries(HASHABLE, VALUES), VALUES
)


def check(options):
    """Parses the options, and looks at what a refusal says."""
    try:
        config = Config.parse(options)
    except ValueError as refusal:
        message = str(refusal)
        assert message.startswith(("option ", "options=")), message[:200]
        assert len(message) < 20_000
        named = [name for name in (*DEFAULTS, *(options if type(options) is dict else ())) if type(name) is str]
        assert (
            not message.startswith("option ")
            or type(options) is not dict
            or (
                any(message.startswith(f"option {name}") for name in named)
                or any(type(key) is not str for key in options)
            )
        )
    else:
        assert isinstance(config, Config)
        assert config.cuts and all(0 <= cut.layer < 2**63 and cut.kept(10) <= 10 for cut in config.cuts)
        assert callable(config.selector) or type(config.selector) is str
        assert callable(config.inner) or type(config.inner) is str


@given(CASES)
@example({"stages": OF_ITSELF})
@example({"segment": BY_ITSELF})
@example({"layer": 10**5000})
@example([range(10**9)])
@example([(1, itertools.count())])
@example({"segment": {"frames": 10**400}})
@example({"selector": "x" * 10**6})
@example({"inductor": {"x" * 10**6: 1}})
@example({"debias": Calibration(1, None)})
@example({"debias": Calibration(1, itertools.count())})
@example({"debias": Calibration(1, range(10**9))})
@example({"debias": Calibration(1, {3: "none"})})
@example({"debias": Calibration(1, {0: torch.zeros(0)})})
@example({"debias": Calibration(1, {2: torch.tensor([0.5, float("nan")])})})
def test_any_options(options):
    check(options)


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_values_whose_methods_fail_name_their_option(name):
    for value in [*HOSTILE, ODD, Everything(), NotANumber(), OF_ITSELF, BY_ITSELF, LAUGHS]:
        check({name: value})
        check({name: [(value, 0.5)]})
        check({name: [(1, value)]})
        # Inductor knows its hundreds of options slowly.
        for field in ("scope", "frames", "profile", "form", "threshold", "on") if name != "inductor" else ():
            check({name: {field: value}})


def test_names_whose_methods_fail_are_refused():
    for value in [*HOSTILE, ODD]:
        if is_name(value):
            check({value: 1})
            check({"segment": {value: 1}})
            check({"inductor": {value: 1}})


BYTES = st.binary()


def read(data):
    """Options as they stand in a JSON file, as bytes."""
    try:
        options = json.loads(data)
    except (ValueError, RecursionError):
        return
    check(options)


@given(BYTES)
@example(b'{"retention": NaN}')
@example(b'{"retention": Infinity, "layer": 1e400}')
@example(b'{"stages": [[0, 0.5], [1, 1e-300]]}')
@example(b'{"selector": "\\ud800"}')
@example(b'{"\\udcff": "\\ud800"}')
def test_any_options_that_json_can_say(data):
    read(data)

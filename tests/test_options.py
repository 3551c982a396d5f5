"""The options: what is refused and how the refusal reads, and what a good mapping turns into."""

import math
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharp_compile.calibration import Calibration
from sharp_compile.options import DEFAULTS, Config, Cut
from sharp_compile.sharp_options import Debias, Dedup, Segment

PROFILE = Calibration(1, {3: torch.zeros(3)})


def score(ctx):
    """A user's scoring function."""
    return ctx.hidden.norm(dim=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention", 0),
        ("retention", 0.0),
        ("retention", -0.1),
        ("retention", 1.0000001),
        ("retention", 4e-7),
        ("retention", 10),
        ("retention", 10**400),
        ("retention", -(10**400)),
        ("retention", True),
        ("retention", "0.1"),
        ("retention", None),
        ("retention", math.nan),
        ("retention", math.inf),
        ("retention", np.float32("nan")),
        ("retention", 0.1j),
        ("layer", -1),
        ("layer", 1.0),
        ("layer", True),
        ("layer", "1"),
        ("layer", None),
        ("stages", []),
        ("stages", 0.5),
        ("stages", "ab"),
        ("stages", {1: 0.5}),
        ("stages", {(1, 0.5)}),
        ("stages", [1, 0.5]),
        ("stages", [(1, 0.5, 2)]),
        ("stages", [(-1, 0.5)]),
        ("stages", [(True, 0.5)]),
        ("stages", [(1, 0.0)]),
        ("stages", [(1, math.nan)]),
        ("stages", [(1, 0.5), (1, 0.2)]),
        ("stages", [(3, 0.5), (1, 0.2)]),
        ("stages", [(1, 0.2), (3, 0.5)]),
        ("stages", [(1, 0.5), (3, 0.5)]),
        ("stages", [(1, 0.1000001), (3, 0.1)]),
        ("selector", "sharpp"),
        ("selector", "FastV"),
        ("selector", ""),
        ("selector", None),
        ("selector", 3),
        ("segment", 1),
        ("segment", "frame"),
        ("segment", {"frame": 2}),
        ("segment", {"scope": "all"}),
        ("segment", {"frames": 0}),
        ("segment", {"count": 1.5}),
        ("segment", {"tokens_per_frame": -196}),
        ("segment", {"frames": 2, "count": 2}),
        ("debias", "black"),
        ("debias", True),
        ("debias", False),
        ("debias", {"form": "log"}),
        ("debias", {"profile": "black"}),
        ("debias", {"profile": PROFILE, "form": "logit"}),
        ("debias", Calibration(1)),
        ("debias", Calibration(2, {3: torch.zeros(3)})),
        ("dedup", 1.1),
        ("dedup", True),
        ("dedup", "key"),
        ("dedup", {"threshold": "high"}),
        ("dedup", {"tau": 0.8}),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.0),
        ("seed", False),
        ("seed", None),
        ("inner", "sharp"),
        ("inner", "inductr"),
        ("inner", ""),
        ("inner", None),
        ("inner", 7),
        ("inductor", None),
        ("inductor", "max_autotune"),
        ("inductor", ["max_autotune"]),
        ("flash_attention", "eager"),
        ("flash_attention", None),
        ("flash_attention", True),
        ("on_skip", "warning"),
        ("on_skip", None),
        ("on_skip", False),
    ],
)
def test_a_bad_value_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError) as refusal:
        Config.parse({name: value})
    assert str(refusal.value).startswith(f"option {name}={value!r}: ")


@pytest.mark.parametrize(
    ("options", "name", "nearest"),
    [
        ({"retension": 0.1}, "retension=0.1", "retention"),
        ({"Layer": 2}, "Layer=2", "layer"),
        ({"on-skip": "warn"}, "on-skip='warn'", "on_skip"),
        ({"selector": "fast_v"}, "selector='fast_v'", "fastv"),
        ({"selector": "DIVERSE"}, "selector='DIVERSE'", "diversity"),
        ({"selector": "SparseVLMs"}, "selector='SparseVLMs'", "sparsevlm"),
        ({"debias": "rotery"}, "debias='rotery'", "rotary"),
        ({"inner": "aoteager"}, "inner='aoteager'", "aot_eager"),
        ({"on_skip": "rise"}, "on_skip='rise'", "raise"),
        ({"inductor": {"max_autotun": True}}, "inductor['max_autotun']=True", "max_autotune"),
    ],
)
def test_a_misspelt_name_is_told_its_nearest(options, name, nearest):
    with pytest.raises(ValueError) as refusal:
        Config.parse(options)
    assert f"option {name}: " in str(refusal.value)
    assert str(refusal.value).endswith(f"; the nearest known name is {nearest!r}")


def test_an_unknown_option_lists_those_there_are():
    with pytest.raises(ValueError) as refusal:
        Config.parse({3: None})
    assert str(refusal.value) == f"option 3=None: no such option, there are {', '.join(DEFAULTS)}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": [(1, 0.5)], "retention": 0.1}, "option retention=0.1: give it or stages"),
        ({"stages": [(1, 0.5)], "layer": 1}, "option layer=1: give it or stages"),
        (
            {"selector": "fastv", "debias": "rotary"},
            "option debias='rotary': must be None with selector='fastv'",
        ),
        (
            {"selector": score, "debias": "rotary"},
            "option debias='rotary': must be None with selector=<function",
        ),
        ({"inner": "eager", "inductor": {"max_autotune": True}}, "option inductor={'max_autotune': True}: "),
        (
            {"inner": lambda gm, _: gm, "inductor": {"max_autotune": True}},
            "must be empty with inner=<function",
        ),
        (
            {"inductor": {"max_autotune": "yes"}},
            "option inductor['max_autotune']='yes': must be of type bool",
        ),
        ({"inductor": {3: True}}, "option inductor[3]=True: "),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError) as refusal:
        Config.parse(options)
    assert message in str(refusal.value)


def test_the_defaults():
    expected = Config(
        cuts=(Cut(layer=1, numerator=1, denominator=10),),
        modality="visual",
        selector="sharp",
        segment=Segment("scores", 1),
        debias=Debias("rotary", "logit"),
        dedup=Dedup(0.9, "hidden"),
        seed=0,
        hoist=True,
        reuse_layers=True,
        flash_attention="sdpa",
        inner="inductor",
        inductor=(),
        on_skip="warn",
    )
    assert Config.parse() == Config.parse(None) == Config.parse({}) == expected
    assert Config.parse(DEFAULTS | {"stages": None}) == expected


@pytest.mark.parametrize(
    ("retention", "share"),
    [
        (1, (1, 1)),
        (1.0, (1, 1)),
        (0.9999999, (1, 1)),
        (0.25, (1, 4)),
        (1e-6, (1, 1_000_000)),
        (1 / 3, (333_333, 1_000_000)),
        (Fraction(1, 8), (1, 8)),
        (np.float32(0.1), (1, 10)),
        (np.int64(1), (1, 1)),
    ],
)
def test_retention_becomes_a_reduced_fraction(retention, share):
    assert Config.parse({"retention": retention, "layer": 0}).cuts == (Cut(0, *share),)


@pytest.mark.parametrize("stages", [[(1, 0.5), (4, 0.2)], ((1, 0.5), (4, 0.2)), [[np.int64(1), 0.5], [4, 0.2]]])
def test_stages_become_cuts(stages):
    assert Config.parse({"stages": stages}).cuts == (Cut(1, 1, 2), Cut(4, 1, 5))


def test_stages_of_none_leave_retention_and_layer_alone():
    assert Config.parse({"stages": None, "retention": 0.5, "layer": 2}).cuts == (Cut(2, 1, 2),)


@pytest.mark.parametrize("selector", ["fastv", "uniform", "random", "diversity", score])
def test_another_selector_has_no_parts_of_sharp(selector):
    config = Config.parse({"selector": selector, "debias": None, "seed": 3})
    assert config.selector is selector
    assert config == Config.parse({"selector": selector, "seed": 3})
    assert config.segment is config.debias is config.dedup is None


@pytest.mark.parametrize("part", ["segment", "debias", "dedup"])
def test_each_part_can_be_switched_off_alone(part):
    assert Config.parse({part: None}) == replace(Config.parse(), **{part: None})


@pytest.mark.parametrize(
    "name, value, part",
    [
        ("segment", "forward", Segment("forward", 1)),
        ("segment", {"frames": 4}, Segment("scores", 4)),
        ("segment", {"count": 8, "scope": "forward"}, Segment("forward", None, 8)),
        ("segment", {"tokens_per_frame": 196}, Segment("scores", 1, None, 196)),
        ("debias", {"form": "ratio"}, Debias("rotary", "ratio")),
        ("debias", PROFILE, Debias(PROFILE, "subtract")),
        ("debias", {"profile": PROFILE, "form": "ratio"}, Debias(PROFILE, "ratio")),
        ("dedup", 0.8, Dedup(0.8, "hidden")),
        ("dedup", "keys", Dedup(0.9, "keys")),
        ("dedup", {"threshold": 1, "on": "hidden"}, Dedup(1.0, "hidden")),
    ],
)
def test_what_a_part_becomes(name, value, part):
    assert getattr(Config.parse({name: value}), name) == part


def test_a_calibration_is_for_one_cut():
    with pytest.raises(ValueError, match="measured at layer 1, the cuts are after"):
        Config.parse({"debias": PROFILE, "stages": [(1, 0.5), (2, 0.1)]})


def test_seed_is_any_integer_type_that_fits():
    assert Config.parse({"seed": 2**63 - 1}).seed == 2**63 - 1
    assert type(Config.parse({"seed": np.uint8(7)}).seed) is int


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "eager_noexcept", "inductor", score])
def test_inner_is_a_backend_of_dynamo_or_a_function(inner):
    assert Config.parse({"inner": inner}).inner is inner


@pytest.mark.parametrize("on_skip", ["warn", "raise", "silent"])
def test_on_skip(on_skip):
    assert Config.parse({"on_skip": on_skip}).on_skip == on_skip


def test_inductor_patches_have_inductors_names_and_an_order():
    patches = {"triton.cudagraphs": False, "max-autotune": True, "debug": False}
    assert Config.parse({"inductor": patches}).inductor == (
        ("debug", False),
        ("max_autotune", True),
        ("triton.cudagraphs", False),
    )


def test_a_config_is_frozen_and_its_own():
    options = {"retention": 0.5, "inductor": {"max_autotune": True}}
    config = Config.parse(options)
    options["inductor"]["max_autotune"] = False
    assert config == Config.parse({"retention": 0.5, "inductor": {"max_autotune": True}})
    assert hash(config) == hash(Config.parse({"retention": 0.5, "inductor": {"max_autotune": True}}))
    with pytest.raises(FrozenInstanceError):
        config.seed = 1
    with pytest.raises(FrozenInstanceError):
        config.cuts[0].layer = 0


@given(retention=st.floats(5.1e-7, 1), visual=st.integers(0, 10**6))
def test_kept_is_the_ceiling_of_the_share_to_six_decimals(retention, visual):
    (cut,) = Config.parse({"retention": retention}).cuts
    kept = cut.kept(visual)
    assert kept == math.ceil(round(Fraction(retention), 6) * visual)
    assert math.gcd(cut.numerator, cut.denominator) == 1
    symbol = sympy.Symbol("visual", integer=True, nonnegative=True)
    assert cut.kept(symbol).subs(symbol, visual) == kept


def test_kept_of_everything_is_the_symbol_itself():
    symbol = sympy.Symbol("visual", integer=True, nonnegative=True)
    assert Cut(1, 1, 1).kept(symbol) == symbol

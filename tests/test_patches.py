"""What is changed in torch and transformers: one table, and a way back."""

from copy import deepcopy
from importlib import import_module

import pytest
import torch
from torch.testing import assert_close

import sharp_compile
from sharp_compile import patches
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.support import generate
from tests.toy import Toy, toy_inputs

NAME = "llava_onevision"
OPTIONS = {"retention": 0.25, "selector": "uniform", "layer": 1}


@pytest.fixture
def compiled():
    return sharp_compile.compile(deepcopy(shared_model(NAME)), inner="eager", **OPTIONS)


@pytest.fixture
def inputs():
    return ALL_ARCHITECTURES[NAME].inputs(shared_model(NAME), batch=2, pad=[0, 3])


def resolve(target):
    """What has a full name."""
    names = target.split(".")
    for end in range(len(names), 0, -1):
        try:
            found = import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        for name in names[end:]:
            found = getattr(found, name)
        return found
    raise LookupError(target)


def replaced():
    """The targets of the table that are functions of libraries, each with whether one of ours stands there."""
    targets = [row.target for row in patches.status() if row.replacement.startswith("sharp_compile.")]
    # Models of other tests' own may be gone.
    plain = [target for target in targets if "[" not in target and target.split(".")[0] in ("torch", "transformers")]
    return {target: is_ours(resolve(target)) for target in plain}


def is_ours(function):
    return "sharp_compile" in getattr(getattr(function, "__code__", None), "co_filename", "")  # some are of C


def test_the_table_says_what_stands_where_and_why(compiled, inputs):
    generate(compiled, inputs)
    rows = patches.status()
    assert all(row.installed and row.versions and row.why and row.acts for row in rows)
    ours = replaced()
    assert len(ours) > 10 and all(ours.values())
    assert {"torch._dynamo.eval_frame.OptimizeContext.__call__", "transformers.cache_utils.Cache.update"} <= {*ours}


def test_taken_away_all_is_stock_until_the_backend_is_used_again(compiled, inputs):
    with oracle.prune(shared_model(NAME), **OPTIONS):
        expected = generate(shared_model(NAME), inputs)
    generate(compiled, inputs)
    before = replaced()
    patches.uninstall()
    assert not any(row.installed for row in patches.status())
    assert not any(replaced().values())
    torch.compile(Toy(), backend="eager")(**toy_inputs())
    assert not any(replaced().values())
    again = generate(compiled, inputs)
    assert replaced() == before
    assert again.sequences.tolist() == expected.sequences.tolist()
    assert_close(torch.stack(again.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)


def test_what_is_compiled_anew_has_all_of_it():
    for compile_model in (
        lambda model: model.compile(backend="sharp", options={"inner": "eager"}),
        sharp_compile.compile,
    ):
        patches.uninstall()
        compile_model(Toy())
        torch.compile(Toy(), backend="sharp", options={"inner": "eager"})(**toy_inputs())
        assert all(row.installed for row in patches.status())


def test_what_came_after_a_patch_stays():
    class Owner:
        def method(self):
            return "stock"

    stock = Owner.method
    about = {"versions": "1", "why": "a test", "acts": "here", "target": "tests.Owner.method"}
    patches.replace(Owner, "method", lambda original: lambda self: f"ours, {original(self)}", **about)
    ours = Owner.method
    Owner.method = lambda self: f"theirs, {ours(self)}"
    try:
        patches.uninstall()
        assert Owner().method() == "theirs, ours, stock"
        patches.install()
        assert Owner().method() == "theirs, ours, stock"
        patches.uninstall()
        Owner.method = ours
        patches.install()
        patches.uninstall()
        assert Owner.method is stock
    finally:
        patches._changes.pop(about["target"])
        patches._removed.discard(about["target"])
        patches.install()


def test_explain_shows_it(capsys):
    explanation = sharp_compile.explain(Toy(), **toy_inputs())
    assert explanation.patches == tuple(patches.status())
    shown = capsys.readouterr().out
    assert "changed in torch and transformers" in shown and "OptimizeContext" in shown

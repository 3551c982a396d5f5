"""The pages that say how something is added: what they show runs, as a reader would run it."""

import importlib.util
import sys

import pytest
import torch
from sharp_compile.passes.analysis import attention
from sharp_compile.passes.canonicalize import static_cache
from sharp_compile.passes.token_dim import op_rules

import sharp_compile
from sharp_compile import selector_registry
from tests.test_docs import ROOT, blocks
from tests.toy import Toy, toy_inputs

PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))


@pytest.fixture
def registries(monkeypatch):
    """What a page adds goes with it."""
    for owner, name in (
        (selector_registry, "_rules"),
        (attention, "_FORMS"),
        (static_cache, "_WRITES"),
        (op_rules, "_RULES"),
        (op_rules, "_MIXES"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name).copy())


def test_there_is_a_page_for_each():
    assert [page.stem for page in PAGES] == ["architecture", "aten_rule", "attention_op", "cache", "selector"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_page_shows_runs(page, registries, tmp_path, capsys):
    """One block after the other, in a module, which Dynamo asks for the functions in it."""
    path, name = tmp_path / f"page_{page.stem}.py", f"page_{page.stem}"
    code = ""
    for block, line in blocks(page, "python"):
        code += "\n" * (line - code.count("\n")) + block
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if page.stem == "selector":
        vars(module).update(model=Toy(), inputs=toy_inputs(), torch=torch, sharp_compile=sharp_compile)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]


def test_a_name_or_an_operator_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="a selector is named 'fastv' already"):
        sharp_compile.register_selector("fastv")
    with pytest.raises(ValueError, match=r"aten\.cat has a rule already"):
        op_rules.register_op_rule(torch.ops.aten.cat, mixes_tokens=False)(op_rules.allowed)


def test_other_options_are_handed_to_a_rule(registries):
    seeds = []

    @sharp_compile.register_selector("by_seed", needs_attention=False, options=("seed",))
    def by_seed(ctx, seed):
        seeds.append(seed)
        return ctx.hidden.norm(dim=-1)

    torch.compile(Toy(), backend="sharp", options={"selector": "by_seed", "seed": 7, "inner": "eager"})(**toy_inputs())
    assert set(seeds) == {7}

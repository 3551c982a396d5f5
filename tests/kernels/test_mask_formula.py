"""Masks as formulas: what they say, and what they give at some positions."""

import pytest
import sympy
import torch
from sharp_compile.kernels import mask_formula
from sharp_compile.kernels.mask_formula import CAUSAL, KEY, QUERY, key_symbol, query_symbol
from torch.utils._sympy.functions import FloorDiv

VISIBLE = sympy.Ne(key_symbol(0), 0)
BLOCKS = sympy.Or(CAUSAL, sympy.And(sympy.Eq(query_symbol(0), key_symbol(1)), query_symbol(0) >= 0))
CHUNKS = sympy.Eq(FloorDiv(KEY - query_symbol(0), 4), FloorDiv(QUERY - query_symbol(0), 4))
FORMULAS = [
    CAUSAL,
    sympy.And(CAUSAL, VISIBLE),
    sympy.And(CAUSAL, KEY > QUERY - 3, VISIBLE),
    sympy.And(BLOCKS, VISIBLE),
    sympy.And(CAUSAL, CHUNKS),
    sympy.And(CAUSAL, sympy.Not(sympy.Eq(query_symbol(0), key_symbol(1)))),
    sympy.Abs(QUERY - KEY) <= 2,
]


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_a_formula_gives_for_each_pair_what_sympy_says(formula):
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.tensor([[1, 4, 5, 9], [0, 2, 7, 8]]), torch.tensor([[0, 1, 4, 6, 9], [2, 3, 5, 7, 8]])
    of_query = [torch.randint(-1, 3, (2, 4), generator=generator)]
    of_key = [torch.rand(2, 5, generator=generator) < 0.7, torch.randint(-1, 3, (2, 5), generator=generator)]
    values = mask_formula.values_at(rows, columns, of_query, of_key)
    found = mask_formula.evaluate(mask_formula.read(mask_formula.write(formula)), values).expand(2, 1, 4, 5)
    for row in range(2):
        for query in range(4):
            for key in range(5):
                known = {
                    QUERY: int(rows[row, query]),
                    KEY: int(columns[row, key]),
                    query_symbol(0): int(of_query[0][row, query]),
                    key_symbol(0): int(of_key[0][row, key]),
                    key_symbol(1): int(of_key[1][row, key]),
                }
                assert bool(found[row, 0, query, key]) == bool(formula.subs(known)), known


@pytest.mark.parametrize("formula", [CAUSAL, QUERY >= KEY, sympy.And(KEY <= QUERY, VISIBLE)], ids=str)
def test_causal(formula):
    assert mask_formula.is_causal(formula) and mask_formula.is_causal_and_padding(formula)


@pytest.mark.parametrize("formula", [BLOCKS, KEY < QUERY, KEY <= QUERY + 1, KEY >= QUERY, sympy.true, VISIBLE], ids=str)
def test_not_causal(formula):
    assert not mask_formula.is_causal(formula)


@pytest.mark.parametrize("formula", FORMULAS[2:], ids=str)
def test_more_than_causal(formula):
    assert not mask_formula.is_causal_and_padding(formula)


@pytest.mark.parametrize(
    ("formula", "positions"),
    [
        (KEY > QUERY - 3, 3),
        (QUERY - 3 < KEY, 3),
        (KEY >= QUERY - 3, 4),
        (QUERY - KEY < 3, 3),
        (sympy.And(CAUSAL, KEY > QUERY - 5, KEY > QUERY - 3), 3),
        (CAUSAL, None),
        (KEY < QUERY + 3, None),
        (sympy.Or(KEY > QUERY - 3, VISIBLE), None),
        (KEY > 2 * QUERY - 3, None),
    ],
    ids=str,
)
def test_windows(formula, positions):
    assert mask_formula.window(formula) == positions


def test_what_is_said_of_keys_alone():
    assert mask_formula.visible_keys(sympy.And(CAUSAL, VISIBLE, BLOCKS)) == VISIBLE
    assert mask_formula.visible_keys(CAUSAL) == sympy.true

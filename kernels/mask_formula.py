"""Attention masks as formulas: whether a query sees a key, by their positions and by what is known of each.

A formula is a boolean expression of sympy in ``QUERY`` and ``KEY``, the positions in the sequence, and in symbols for
one number of each query or of each key, such as whether a key is padding::

    (k <= q) & (k > q - 1024) & Ne(key_0, 0)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv

QUERY, KEY = sympy.symbols("q k", integer=True, nonnegative=True)

CAUSAL: Boolean = sympy.Le(KEY, QUERY)


def query_symbol(number: int) -> sympy.Symbol:
    """Return the symbol of a number that each query has: the ``number``-th of them."""
    return sympy.Symbol(f"query_{number}", integer=True)


def key_symbol(number: int) -> sympy.Symbol:
    """Return the symbol of a number that each key has: the ``number``-th of them."""
    return sympy.Symbol(f"key_{number}", integer=True)


def write(formula: Boolean) -> str:
    """Return a formula as the text that ``read`` takes."""
    return sympy.srepr(formula)


@functools.cache
def read(text: str) -> Boolean:
    """Return the formula of a text that ``write`` gave."""
    return sympy.sympify(text, locals={"FloorDiv": FloorDiv}, evaluate=False)


def parts(formula: Boolean) -> tuple[Boolean, ...]:
    """Return the conditions that all have to hold."""
    return sympy.And.make_args(formula)


def is_causal(formula: Boolean) -> bool:
    """Return whether no query sees a key after it, by a condition of its own."""
    return any(_is_order(part) for part in parts(formula))


def window(formula: Boolean) -> int | None:
    """Return how many positions a query sees at most, up to and with its own; None where no condition says so."""
    found = [int(back) for part in parts(formula) if (back := _back(part)) is not None]
    return min(found) if found else None


def _back(part: Boolean) -> sympy.Expr | None:
    """Return ``q - k`` of the first pair that a condition hides, where it hides all that are farther apart."""
    if not isinstance(part, sympy.StrictGreaterThan | sympy.StrictLessThan | sympy.GreaterThan | sympy.LessThan):
        return None
    # `gts` is greater than `lts`, or equal.
    apart = sympy.expand(part.gts - part.lts - KEY + QUERY)
    if not apart.is_Integer or apart <= 0:
        return None
    return apart + (0 if isinstance(part, sympy.StrictGreaterThan | sympy.StrictLessThan) else 1)


def visible_keys(formula: Boolean) -> Boolean:
    """Return the conditions on a key alone."""
    return sympy.And(*(part for part in parts(formula) if _is_of_key(part)))


def is_causal_and_padding(formula: Boolean) -> bool:
    """Return whether a query sees what is not after it, and nothing else is said but by conditions on a key alone."""
    return is_causal(formula) and all(_is_of_key(part) or _is_order(part) for part in parts(formula))


def _is_order(part: Boolean) -> bool:
    return bool(part.is_Relational and part.canonical == CAUSAL.canonical)


def _is_of_key(part: Boolean) -> bool:
    return all(str(symbol).startswith("k") for symbol in part.free_symbols)


def values_at(
    rows: Tensor, columns: Tensor, of_query: Sequence[Tensor] = (), of_key: Sequence[Tensor] = ()
) -> dict[sympy.Symbol, Tensor]:
    """Return what ``evaluate`` takes to make the mask ``[B, 1, Q, K]`` of some queries and keys.

    Args:
        rows: ``[B, Q]`` int64, the positions of the queries.
        columns: ``[B, K]`` int64, the positions of the keys.
        of_query: the numbers of each query, in the order of their symbols, ``[B, Q]`` each.
        of_key: likewise of each key, ``[B, K]``.
    """
    values = {QUERY: rows} | {query_symbol(number): each for number, each in enumerate(of_query)}
    keys = {KEY: columns} | {key_symbol(number): each for number, each in enumerate(of_key)}
    return {symbol: each[:, None, :, None] for symbol, each in values.items()} | {
        symbol: each[:, None, None] for symbol, each in keys.items()
    }


def evaluate(formula: Any, values: Mapping[sympy.Symbol, Tensor]) -> Tensor:
    """Return a formula, or an expression in it, at some queries and keys.

    Args:
        formula: an expression.
        values: of its symbols, int64 or bool, shapes that can be broadcast together.

    Returns:
        A tensor of the shape that they have together, or of fewer axes where not all of them matter.
    """
    return torch.as_tensor(_evaluate(formula, values), device=next(iter(values.values())).device)


def _evaluate(term: Any, values: Mapping[sympy.Symbol, Tensor]) -> Any:
    if term.is_Symbol:
        return values[term]
    if term in (sympy.true, sympy.false):
        return term is sympy.true
    if term.is_Integer:
        return int(term)
    if isinstance(term, sympy.Ne) and term.rhs == 0 and term.lhs.is_Symbol and values[term.lhs].dtype == torch.bool:
        return values[term.lhs]
    found = [_evaluate(each, values) for each in term.args]
    return functools.reduce(_OPERATORS[term.func], found) if len(found) > 1 else _OPERATORS_OF_ONE[term.func](*found)


_OPERATORS: dict[Any, Any] = {
    sympy.Add: lambda a, b: a + b,
    sympy.Mul: lambda a, b: a * b,
    FloorDiv: lambda a, b: a // b,
    sympy.And: lambda a, b: a & b,
    sympy.Or: lambda a, b: a | b,
    sympy.Le: lambda a, b: a <= b,
    sympy.Lt: lambda a, b: a < b,
    sympy.Ge: lambda a, b: a >= b,
    sympy.Gt: lambda a, b: a > b,
    sympy.Eq: lambda a, b: a == b,
    sympy.Ne: lambda a, b: a != b,
}
_OPERATORS_OF_ONE: dict[Any, Any] = {sympy.Not: lambda a: ~a, sympy.Abs: abs}

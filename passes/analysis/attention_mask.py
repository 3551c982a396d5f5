"""Reads a dense attention mask as the formula that it was made from.

Models make their masks of counts and look-ups::

    (k_arange[None, None, None, :] <= q_arange[None, None, :, None]) & attention_mask[rows, k_arange]

So each element follows from its row, query and key, and is known where they are (``kernels.mask_formula``). All
operators between the counts and the mask are read here, in and outside of ``torch.vmap``; whatever is computed without
counts (padding, the numbers of blocks) is a table that the formula looks up.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor
from torch.fx import Node
from torch.utils._sympy.functions import FloorDiv

from ...kernels import mask_formula
from ...kernels.mask_formula import KEY, QUERY
from ..fx.nodes import ancestors, example_tensor, is_vmapped, name_of
from ..fx.sizes import expression

# Arithmetic of smaller types wraps, which a formula does not know.
_EXACT = (torch.bool, torch.int32, torch.int64)
_ROW = sympy.Symbol("row", integer=True, nonnegative=True)


@dataclass(frozen=True)
class Lookup:
    """An entry of a table for each query or each key.

    ``places`` are, for each axis of ``table``, expressions in the row and in the position.
    """

    table: Node
    places: tuple[sympy.Expr, ...]

    def at(self, table: Tensor, positions: Tensor) -> Tensor:
        """Return the entries for ``positions`` ``[B, N]``, ``[B, N]``."""
        row = torch.arange(positions.shape[0], device=positions.device)[:, None]
        values = {_ROW: row, QUERY: positions, KEY: positions}
        places = (mask_formula.evaluate(place, values).expand_as(positions) for place in self.places)
        return table[tuple(places)] if self.places else table.expand_as(positions)


@dataclass(frozen=True)
class MaskFormula:
    """A mask ``[B, 1, Sq, Sk]`` as a formula.

    Attributes:
        formula: in ``QUERY``, ``KEY`` and the symbols of the look-ups; see ``kernels.mask_formula``.
        of_query: what is looked up for each query, in the order of their symbols.
        of_key: what is looked up for each key.
    """

    formula: Boolean
    of_query: tuple[Lookup, ...] = ()
    of_key: tuple[Lookup, ...] = ()

    @property
    def tables(self) -> list[Node]:
        """The tables of ``of_query``, then those of ``of_key``."""
        return [lookup.table for lookup in (*self.of_query, *self.of_key)]

    @property
    def is_causal(self) -> bool:
        """Whether no token sees one after it, whatever else is said."""
        return mask_formula.is_causal(self.formula)

    @property
    def is_causal_and_padding(self) -> bool:
        """Whether a token sees all that are not after it, but for keys that none sees."""
        return mask_formula.is_causal_and_padding(self.formula)

    def inside(self, segment: Node) -> MaskFormula:
        """Return the formula of a mask that also hides other segments (``kernels.segment_attention.inside``).

        ``segment`` is ``[B, S]`` int64, -1 for a token outside of all.
        """
        own, other = mask_formula.query_symbol(len(self.of_query)), mask_formula.key_symbol(len(self.of_key))
        visible = sympy.And(self.formula, sympy.Or(own < 0, other < 0, sympy.Eq(own, other)))
        of_query, of_key = (Lookup(segment, (_ROW, position)) for position in (QUERY, KEY))
        return MaskFormula(visible, (*self.of_query, of_query), (*self.of_key, of_key))

    def visible(self, rows: Tensor, columns: Tensor, *tables: Tensor) -> Tensor:
        """Return the mask of queries and keys at positions ``[B, Q]`` and ``[B, K]``, ``[B, 1, Q, K]`` bool."""
        values = mask_formula.values_at(rows, columns, *self._looked_up(rows, columns, tables))
        shape = rows.shape[0], 1, rows.shape[1], columns.shape[1]
        return mask_formula.evaluate(self.formula, values).expand(shape)

    def visible_keys(self, columns: Tensor, *tables: Tensor) -> Tensor:
        """Return which keys at positions ``[B, K]`` are seen as far as it is up to them alone, ``[B, K]`` bool."""
        _, of_key = self._looked_up(columns, columns, tables)
        values = {KEY: columns} | {mask_formula.key_symbol(number): each for number, each in enumerate(of_key)}
        return mask_formula.evaluate(mask_formula.visible_keys(self.formula), values).expand_as(columns)

    def sees_itself(self, positions: Tensor, *tables: Tensor) -> Tensor:
        """Return whether the tokens at positions ``[B, N]`` see themselves, ``[B, N]`` bool."""
        of_query, of_key = self._looked_up(positions, positions, tables)
        values = {QUERY: positions} | {mask_formula.query_symbol(number): each for number, each in enumerate(of_query)}
        values |= {mask_formula.key_symbol(number): each for number, each in enumerate(of_key)}
        return mask_formula.evaluate(self.formula.xreplace({KEY: QUERY}), values).expand_as(positions)

    def _looked_up(self, rows: Tensor, columns: Tensor, tables: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return what is looked up for queries and for keys: ``[B, Q]`` and ``[B, K]`` each."""
        values = iter(tables)
        of_query = [lookup.at(next(values), rows) for lookup in self.of_query]
        return of_query, [lookup.at(next(values), columns) for lookup in self.of_key]


CAUSAL = MaskFormula(mask_formula.CAUSAL)


def read_mask(mask: Node, zeros: Collection[Node] = ()) -> MaskFormula | None:
    """Return the formula of a mask; None where it is not understood to the end.

    Args:
        mask: ``[1 or B, 1, Sq, Sk]`` bool.
        zeros: tensors of one number that are known to be 0, such as the count of the tokens in an empty cache.
    """
    value = example_tensor(mask)
    if value is None or value.ndim != 4 or value.dtype != torch.bool:
        return None
    try:
        reader = _Reader(mask, zeros)
        return _formula(reader.read(), reader.tables)
    except _NotUnderstood:
        return None


class _NotUnderstood(Exception):
    """A mask, or a part of it, is no formula."""


class _Entry(sympy.Function):
    """An entry of a table: the number of the table, and its place in each axis."""

    is_integer = True


@dataclass(frozen=True)
class _Elements:
    """What the elements of a tensor are: an expression in the place on each axis, None for an axis of size 1."""

    expression: Any
    axes: tuple[sympy.Symbol | None, ...]


@dataclass
class _Reader:
    mask: Node
    zeros: Collection[Node]
    tables: list[Node] = field(default_factory=list)
    known: dict[Node, _Elements] = field(default_factory=dict)
    levels: dict[int, sympy.Symbol] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=itertools.count)

    def read(self) -> _Elements:
        """Read all that is computed from counts, up to the mask."""
        order = ancestors(self.mask)
        counting: set[Node] = set()
        for node in order:
            if _is_count(node) or not counting.isdisjoint(node.all_input_nodes):
                counting.add(node)
        for node in order:
            if node in counting and example_tensor(node) is not None:
                self.known[node] = self._step(node)
        if self.mask not in self.known:
            raise _NotUnderstood(self.mask)
        return self.known[self.mask]

    def _step(self, node: Node) -> _Elements:
        """Read one node, whose inputs are read."""
        rule = _RULES.get(_name(node))
        if rule is None or node.op not in ("call_function", "call_method"):
            raise _NotUnderstood(node)
        try:
            return rule(self, node, *node.args, **node.kwargs)
        except TypeError as error:  # arguments that the rule does not know
            raise _NotUnderstood(node) from error

    def symbol(self) -> sympy.Symbol:
        return sympy.Symbol(f"place_{next(self.names)}", integer=True, nonnegative=True)

    def elements(self, argument: Any) -> _Elements:
        """Return what an argument of a node is: a tensor that was read, a table, or a number."""
        if isinstance(argument, bool):
            return _Elements(sympy.true if argument else sympy.false, ())
        if isinstance(argument, int):
            return _Elements(sympy.Integer(argument), ())
        if not isinstance(argument, Node) or example_tensor(argument) is None:
            raise _NotUnderstood(argument)
        if argument in self.known:
            return self.known[argument]
        if argument in self.zeros:
            return _Elements(sympy.Integer(0), (None,) * example_tensor(argument).ndim)  # type: ignore[union-attr]
        axes = tuple(None if expression(size) == 1 else self.symbol() for size in example_tensor(argument).shape)  # type: ignore[union-attr]
        return _Elements(self.entry(argument, [0 if axis is None else axis for axis in axes]), axes)

    def entry(self, table: Node, places: list[Any]) -> Any:
        """Return an entry of a table, as a condition where it is one."""
        value = example_tensor(table)
        if value is None or is_vmapped(value) or value.dtype not in _EXACT:
            raise _NotUnderstood(table)
        if sum(expression(size) != 1 for size in value.shape) > 2:
            raise _NotUnderstood(table)
        if table not in self.tables:
            self.tables.append(table)
        entry = _Entry(sympy.Integer(self.tables.index(table)), *places)
        return sympy.Ne(entry, 0) if value.dtype == torch.bool else entry


def _formula(read: _Elements, tables: list[Node]) -> MaskFormula:
    """Return what was read with the axes of a mask, look-ups as numbers of queries and keys."""
    visible, (row, heads, query, key) = read.expression, read.axes
    names = {row: _ROW, query: QUERY, key: KEY}
    if heads in getattr(visible, "free_symbols", ()):
        raise _NotUnderstood
    visible = visible.xreplace({symbol: name for symbol, name in names.items() if symbol is not None})
    of_query: dict[Any, Lookup] = {}
    of_key: dict[Any, Lookup] = {}
    for entry in sorted(visible.atoms(_Entry), key=str):
        table, *places = entry.args
        symbols = set().union(*(place.free_symbols for place in places))
        if any(place.atoms(_Entry) for place in places) or {QUERY, KEY} <= symbols or symbols - {_ROW, QUERY, KEY}:
            raise _NotUnderstood
        found = of_key if KEY in symbols else of_query
        found[entry] = Lookup(tables[int(table)], tuple(places))
    numbers = {entry: mask_formula.query_symbol(number) for number, entry in enumerate(of_query)}
    numbers |= {entry: mask_formula.key_symbol(number) for number, entry in enumerate(of_key)}
    visible = visible.xreplace(numbers)
    if visible.free_symbols - {QUERY, KEY, *numbers.values()} or not isinstance(visible, Boolean):
        raise _NotUnderstood
    return MaskFormula(visible, tuple(of_query.values()), tuple(of_key.values()))


# What the operators do.

_Rule = Callable[..., _Elements]
_RULES: dict[str, _Rule] = {}


def _rule(*names: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _name(node: Node) -> str:
    """Return by what name the rules know an operator: a function, a method, or one of ATen."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    name = name_of(node)
    if name.startswith("__") and name.endswith("__"):
        return name.strip("_")
    return name.removesuffix("_") if getattr(operator, name, None) is target else name


def _is_count(node: Node) -> bool:
    return node.op == "call_function" and _name(node) in ("arange", "new_ones", "new_zeros")


def _together(reader: _Reader, *arguments: Any) -> tuple[list[Any], tuple[sympy.Symbol | None, ...]]:
    """Return the elements of tensors that are broadcast together, at the same places."""
    given = [reader.elements(argument) for argument in arguments]
    rank = max(len(each.axes) for each in given)
    padded = [(None,) * (rank - len(each.axes)) + each.axes for each in given]
    is_long = [any(axis is not None for axis in column) for column in zip(*padded, strict=True)]
    # Anew, since one count may run along several axes.
    axes = tuple(reader.symbol() if each else None for each in is_long)
    found = []
    for each, own in zip(given, padded, strict=True):
        moves = {old: new for old, new in zip(own, axes, strict=True) if old is not None}
        found.append(each.expression.xreplace(moves))
    return found, axes


@_rule("arange")
def _arange(reader: _Reader, node: Node, *bounds: Any, **options: Any) -> _Elements:
    start = 0 if len(bounds) == 1 else bounds[0]
    if len(bounds) > 2 or not isinstance(start, int) or not {"start", "end", "step"}.isdisjoint(options):
        raise _NotUnderstood(node)
    value = example_tensor(node)
    if value is None or value.dtype not in _EXACT:
        raise _NotUnderstood(node)
    place = reader.symbol()
    return _Elements(place + start, (place,))


@_rule("new_ones", "new_zeros")
def _constant(reader: _Reader, node: Node, like: Any, *shape: Any, **options: Any) -> _Elements:
    value = example_tensor(node)
    if value is None or value.dtype != torch.bool or value.ndim:
        raise _NotUnderstood(node)
    return _Elements(sympy.true if "ones" in _name(node) else sympy.false, ())


def _pointwise(function: Callable[..., Any]) -> _Rule:
    """Return the rule of an operator on conditions, or on numbers, where ``function`` is none of logic."""
    of_conditions = function in (sympy.And, sympy.Or, sympy.Not)

    def rule(reader: _Reader, node: Node, *arguments: Any) -> _Elements:
        given, axes = _together(reader, *arguments)
        # A symbol could be either: here it is a number.
        if any(isinstance(each, sympy.Expr) == of_conditions for each in given):
            raise _NotUnderstood(node)
        return _Elements(function(*given), axes)

    return rule


for _names, _function in (
    (("add",), operator.add),
    (("sub",), operator.sub),
    (("floordiv", "floor_divide"), FloorDiv),
    (("abs",), sympy.Abs),
    (("and", "logical_and", "bitwise_and"), sympy.And),
    (("or", "logical_or", "bitwise_or"), sympy.Or),
    (("invert", "logical_not", "bitwise_not"), sympy.Not),
    (("le", "less_equal"), sympy.Le),
    (("lt", "less"), sympy.Lt),
    (("ge", "greater_equal"), sympy.Ge),
    (("gt", "greater"), sympy.Gt),
    (("eq",), sympy.Eq),
    (("ne", "not_equal"), sympy.Ne),
):
    _rule(*_names)(_pointwise(_function))


@_rule("to", "contiguous", "clone", "detach", "_to_copy", "bool", "long", "int")
def _as_it_is(reader: _Reader, node: Node, given: Any, *_: Any, **options: Any) -> _Elements:
    before, after = example_tensor(given), example_tensor(node)
    if before is None or after is None or (before.dtype == torch.bool) != (after.dtype == torch.bool):
        raise _NotUnderstood(node)
    if after.dtype not in _EXACT:
        raise _NotUnderstood(node)
    return reader.elements(given)


@_rule("unsqueeze")
def _unsqueeze(reader: _Reader, node: Node, given: Any, axis: int) -> _Elements:
    read = reader.elements(given)
    axis %= len(read.axes) + 1
    return _Elements(read.expression, (*read.axes[:axis], None, *read.axes[axis:]))


@_rule("expand")
def _expand(reader: _Reader, node: Node, given: Any, *sizes: Any, **_: Any) -> _Elements:
    read, value = reader.elements(given), example_tensor(node)
    assert value is not None
    return _Elements(read.expression, (None,) * (value.ndim - len(read.axes)) + read.axes)


@_rule("getitem", "index")
def _getitem(reader: _Reader, node: Node, given: Any, index: Any) -> _Elements:
    index = tuple(index) if isinstance(index, tuple | list) else (index,)
    if any(isinstance(each, Node) for each in index):
        if given in reader.known or not all(isinstance(each, Node) for each in index):
            raise _NotUnderstood(node)
        value = example_tensor(given)
        if value is None or value.ndim != len(index):
            raise _NotUnderstood(node)
        return _looked_up(reader, given, index)
    read, before, after = reader.elements(given), example_tensor(given), example_tensor(node)
    assert before is not None and after is not None
    axes: list[sympy.Symbol | None] = []
    sizes = [*before.shape]
    for place, each in enumerate(index):
        if each is None:
            axes.append(None)
            sizes.insert(place, 1)
        elif isinstance(each, slice) and each.start in (None, 0) and each.step in (None, 1):
            axes.append(read.axes[sum(other is not None for other in index[:place])])
        else:
            raise _NotUnderstood(node)
    if list(map(expression, sizes)) != list(map(expression, after.shape)):
        raise _NotUnderstood(node)
    return _Elements(read.expression, (*axes, *read.axes[sum(each is not None for each in index) :]))


def _looked_up(reader: _Reader, table: Node, places: tuple[Node, ...]) -> _Elements:
    found, axes = _together(reader, *places)
    return _Elements(reader.entry(table, found), axes)


@_rule("_add_batch_dim")
def _enter_vmap(reader: _Reader, node: Node, given: Any, axis: int, level: int) -> _Elements:
    read = reader.elements(given)
    if read.axes[axis] is None:
        return _Elements(read.expression, (*read.axes[:axis], *read.axes[axis + 1 :]))
    place = reader.levels.setdefault(level, reader.symbol())
    return _Elements(read.expression.xreplace({read.axes[axis]: place}), (*read.axes[:axis], *read.axes[axis + 1 :]))


@_rule("_remove_batch_dim")
def _leave_vmap(reader: _Reader, node: Node, given: Any, level: int, size: Any, axis: int) -> _Elements:
    read, place = reader.elements(given), reader.levels.get(level)
    if place is not None:
        # The next function that is run for each element counts anew.
        fresh = reader.symbol()
        return _Elements(read.expression.xreplace({place: fresh}), (*read.axes[:axis], fresh, *read.axes[axis:]))
    return _Elements(read.expression, (*read.axes[:axis], None, *read.axes[axis:]))

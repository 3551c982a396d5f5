"""Sizes of example values as SymPy expressions and as plain integers.

Dynamo gives a size as an int (static shapes) or a ``torch.SymInt`` (dynamic shapes). Calling ``int`` or
``==`` on the latter would add a guard to Dynamo's ``ShapeEnv``; these functions never do.
"""

from __future__ import annotations

from typing import Any

import sympy
from torch import SymFloat, SymInt

from ..errors import CannotPrune


def expression(size: int | SymInt) -> sympy.Expr:
    """``size`` as an expression in Dynamo's symbols; equal expressions are equal sizes for every input."""
    return size.node.expr if isinstance(size, SymInt) else sympy.Integer(size)


def hint(size: Any) -> Any:
    """``size`` for the inputs that the graph was traced with; what is not symbolic stays as it is.

    Raises:
        CannotPrune: for a size that depends on data, which has no such value.
    """
    if not isinstance(size, SymInt | SymFloat):
        return size
    if not size.node.has_hint():
        raise CannotPrune(f"the size {size} depends on data and is not known when the graph is compiled")
    return size.node.hint

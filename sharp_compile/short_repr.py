"""Values, and what libraries say, in error messages."""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any


class _Shown(reprlib.Repr):
    """``repr`` that ends, and soon: of what is long, deep, or holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 5
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = 200
        self.maxlong = 500

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """As it is in order, where the original sorts."""
        if level <= 0:
            return "{...}"
        items = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        return f"{{{', '.join([*items, *['...'] * (len(x) > self.maxdict)])}}}"


def short_repr(value: object) -> str:
    """``value`` for an error message: its ``repr``, cut where it is long, its type where it has none."""
    try:
        return _Shown().repr(value)
    except Exception:  # whatever a method of the value's own raises, or an integer of too many digits
        return f"<{type(value).__name__}>"


def brief(error: object) -> str:
    """What an error or a message says, in a line, without the pages that libraries append; its kind if nothing."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__

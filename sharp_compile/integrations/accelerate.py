"""Lets accelerate take the backend by its name, and with it ``TrainingArguments(torch_compile_backend="sharp")``.

Its backends are an enumeration, so that it refuses the name of any other before Dynamo is asked.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .. import patches
from .on_import import on_import

_NAME = "SHARP"


def install() -> None:
    """Add the name to that enumeration as soon as accelerate is loaded; all other names are taken as before."""
    on_import("accelerate.utils.dataclasses", _add_name)


def _add_name(dataclasses: ModuleType) -> None:
    kind = dataclasses.DynamoBackend
    if _NAME in kind._member_map_:
        return
    # What an enumeration asks for a value that none of its members has.
    before = kind._missing_
    member = str.__new__(kind, _NAME)
    member._name_ = member._value_ = _NAME

    def missing(cls: type, value: Any) -> Any:
        return member if value == _NAME else before(value)

    patches.change(
        "accelerate.utils.dataclasses.DynamoBackend",
        f"knows {_NAME!r}",
        lambda: setattr(kind, "_missing_", classmethod(missing)),
        lambda: setattr(kind, "_missing_", before),
        versions="accelerate 1.15",
        why="it refuses the names of backends that it does not list",
        acts=f"the name {_NAME!r} alone",
    )

"""The backend, for code that it is built on: what is compiled with it, and with which options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..options import Config

Backend = Callable[..., Any]

NAME = "sharp"

_registered: list[tuple[Backend, Callable[[Any], Config | None]]] = []


def register(backend: Backend, setting_of: Callable[[Any], Config | None]) -> None:
    """Note the backend, and what gives the options with which another one compiles by it."""
    _registered[:] = [(backend, setting_of)]


def backend() -> Backend:
    """Return the backend itself: by its name torch would register it, which only one thread can."""
    return _registered[0][0]


def setting_of(other: Any) -> Config | None:
    """Return the options with which a backend of Dynamo compiles by this one; None for a backend of others.

    Raises:
        ValueError: for a bad option.
    """
    return _registered[0][1](other)


def is_ours(other: Any) -> bool:
    """Return whether Dynamo compiles with this backend, or with one that was made of it.

    Args:
        other: a backend of Dynamo, or the name of one.
    """
    if isinstance(other, str):
        return other == NAME
    if not _registered:
        return False
    try:
        return _registered[0][1](other) is not None
    except ValueError:  # a bad option, which is told of when a graph is compiled
        return True

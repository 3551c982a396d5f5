"""What is changed in torch and transformers, in this process: one table, with a way back.

Every replaced function looks first whether it is ours to act (a compilation for this backend, a cache that a pruned
model filled, logits of a pruned graph), and else runs the stock one. Nothing is changed by importing transformers or
torch: the table fills when the backend is loaded, when a model is compiled with it, and when a graph is first pruned.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TORCH = "torch 2.11 to 2.15"
TRANSFORMERS = "transformers 4.57 to 5.24"


@dataclass(frozen=True)
class Patch:
    """One change.

    Attributes:
        target: what is changed, by its full name.
        replacement: the function of ours that stands there, or what was done to it, in words.
        versions: of the package, for which it was written.
        why: what would be wrong without it.
        acts: where it acts; elsewhere the stock function runs.
        installed: whether it is in place now.
    """

    target: str
    replacement: str
    versions: str
    why: str
    acts: str
    installed: bool


@dataclass(frozen=True)
class _Change:
    patch: Patch
    put: Callable[[], None]
    undo: Callable[[], None]


_changes: dict[str, _Change] = {}
# Those of the table that are not in place.
_removed: set[str] = set()
_lock = threading.RLock()


def replace(
    owner: Any,
    name: str,
    make: Callable[[Any], Any],
    *,
    versions: str,
    why: str,
    acts: str,
    target: str | None = None,
) -> None:
    """Replace a function of another package.

    Args:
        owner: the module or class that has it, or a mapping.
        name: the attribute or key.
        make: given the stock function, makes what replaces it; by ``functools.wraps``, for its name to stay.
        versions: of the package, for which it was written.
        why: what would be wrong without it.
        acts: where it acts.
        target: its full name, where ``owner`` has none.
    """
    is_mapping = isinstance(owner, dict)
    stock = owner[name] if is_mapping else getattr(owner, name)
    ours = make(stock)

    def swap(one: Any, other: Any) -> None:
        # Who came after us has replaced ours by theirs, which may call it: that stays.
        if (owner[name] if is_mapping else getattr(owner, name)) is one:
            (operator.setitem if is_mapping else setattr)(owner, name, other)

    code = ours.__code__
    replacement = f"{ours.__globals__['__name__']}.{code.co_qualname.partition('.<locals>')[0]}"
    target = target or f"{_name_of(owner)}.{name}"
    put, undo = functools.partial(swap, stock, ours), functools.partial(swap, ours, stock)
    change(target, replacement, put, undo, versions=versions, why=why, acts=acts)


def change(
    target: str,
    replacement: str,
    put: Callable[[], None],
    undo: Callable[[], None],
    *,
    versions: str,
    why: str,
    acts: str,
) -> None:
    """Change something of another package, and note it in the table.

    Args:
        target: its full name.
        replacement: what is done to it, in words.
        put: does it.
        undo: takes it back.
        versions: of the package, for which it was written.
        why: what would be wrong without it.
        acts: where it acts.
    """
    with _lock:
        put()
        _changes[target] = _Change(Patch(target, replacement, versions, why, acts, installed=True), put, undo)
        _removed.discard(target)


def status() -> list[Patch]:
    """Return what is changed in torch and transformers in this process, in the order in which it was."""
    with _lock:
        return [dataclasses.replace(each.patch, installed=target not in _removed) for target, each in _changes.items()]


def uninstall() -> None:
    """Put everything back, until something is next compiled, or a pruned graph runs, with this backend.

    A cache that a pruned model filled is not one for stock functions: crop or reorder it before.
    """
    with _lock:
        for target, each in reversed(_changes.items()):
            if target not in _removed:
                each.undo()
        _removed.update(_changes)


def install() -> bool:
    """Put everything in place again that ``uninstall`` took away; return whether there was anything."""
    if not _removed:
        return False
    with _lock:
        for target in [target for target in _changes if target in _removed]:
            _changes[target].put()
        _removed.clear()
    return True


def _name_of(owner: Any) -> str:
    module = getattr(owner, "__module__", None)
    return f"{module}.{owner.__qualname__}" if module else str(getattr(owner, "__name__", owner))

"""Which region of Dynamo's cache a compiled function has, for settings and in threads.

Dynamo compiles a function for a limited number of kinds of calls, in each region of its own (torch 2.13) or in all.
Each setting has a region, so that what is compiled with one counts for no other compilation of the same code.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch._dynamo import eval_frame
from torch._dynamo.eval_frame import OptimizeContext, innermost_backend

from .. import patches

DEFAULT = -1
"""The region of all that has none of its own."""

_ENTER, _CURRENT = "set_eval_frame_isolate_recompiles_id", "get_eval_frame_isolate_recompiles_id"

# The settings that were compiled with, and the region of each.
_regions: list[tuple[Any, int]] = []


def keep_apart(context: OptimizeContext) -> None:
    """Give what is compiled with one setting its region; who was given one by the user has that one."""
    if getattr(context, "_isolate_recompiles_id", None) != DEFAULT:
        return
    setting = innermost_backend(context.callback)  # type: ignore[arg-type]
    region = next((region for known, region in _regions if _is_equal(known, setting)), None)
    if region is None:
        region = next(eval_frame._next_isolate_recompiles_id)
        _regions.append((setting, region))
    context._isolate_recompiles_id = region


def keep_in_threads() -> None:
    """Have a region last for as long as any thread is in it.

    Torch 2.13 and 2.14 have one region for the process: the thread that leaves a compiled function takes the region
    from all others, which are in the middle of one, and compile what they had compiled already. In a region of another
    thread what was compiled outside of all regions is found too. Later ones have one for each thread.
    """
    if hasattr(eval_frame, _ENTER) and _threads_share_one():
        patches.replace(
            eval_frame,
            _ENTER,
            _entering,
            versions="torch 2.13 and 2.14",
            why="a thread that leaves a compiled function takes the region of all others, which compile again",
            acts="compiled functions of several threads",
        )


def _threads_share_one() -> bool:
    """Return whether a thread is in the region that another one entered."""
    enter, current = getattr(eval_frame, _ENTER), getattr(eval_frame, _CURRENT)
    prior = current()
    thread = threading.Thread(target=enter, args=(prior + 1,))
    thread.start()
    thread.join()
    if current() == prior:
        return False
    enter(prior)
    return True


def _entering(original: Callable[[int], int]) -> Callable[[int], int]:
    # Reentrant: what the garbage collector runs may call a compiled function.
    lock, inside = threading.RLock(), dict[int, int]()

    @functools.wraps(original)
    def enter(region: int) -> int:
        thread = threading.get_ident()
        with lock:
            prior = inside.pop(thread, DEFAULT)
            if region != DEFAULT:
                inside[thread] = region
            original(next(reversed(inside.values()), DEFAULT))
        return prior

    return enter


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # options may hold tensors, which have no one answer
        return one is other

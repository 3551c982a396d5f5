"""Functions of the user's as selectors: what they look at, what they write into, and where they fail.

A selector is put into a graph, so it can't look at the values of tensors, which are not there yet. And the graph
computes what it would without the selector: what it writes into are copies.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ... import kernels, selectors
from ...selectors import Context, Score
from ..errors import CannotPrune, SelectorError
from ..fx.nodes import storage_of

_LOOKS_AT_VALUES = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
# PyTorch's code, which a selector calls, and ours, which calls it and which it calls.
_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (torch.__file__, __file__, selectors.__file__, kernels.__file__)
)
_TENSORS = ("grouped_key", "grouped_key_unrotated", "hidden", "is_visual", "is_padding", "frame", "mask")
_QUERIES = "queries"


def try_selector(score: Score, context: Context) -> tuple[Any, frozenset[str]]:
    """Call a selector on fake tensors.

    Returns:
        What it returns, and the fields of the context whose tensors it writes into.

    Raises:
        SelectorError: where it fails, or looks at values.
    """
    with _Writes() as writes:
        result = named(score)(context)
    return result, frozenset(name for name, value in _tensors(context).items() if storage_of(value) in writes.storages)


def on_copies(score: Score, fields: Collection[str]) -> Score:
    """``score``, called with copies of the tensors in some fields of the context."""
    if not fields:
        return score

    @functools.wraps(score, updated=())
    def score_copies(context: Context, *constants: Tensor) -> Any:
        given: dict[str, Any] = {name: getattr(context, name).clone() for name in fields if name != _QUERIES}
        if _QUERIES in fields:
            given[_QUERIES] = lambda rows: context.queries(rows).clone()
        return score(replace(context, **given), *constants)

    return score_copies


def named(score: Score) -> Score:
    """``score``, whose errors name it, and the line of its own at which they came up."""

    def score_named(*arguments: Any) -> Any:
        try:
            return score(*arguments)
        except CannotPrune:
            raise
        except Exception as error:
            raise SelectorError(_what_failed(score, error)) from error

    return score_named


def _tensors(context: Context) -> Mapping[str, Tensor]:
    fields = {name: getattr(context, name) for name in _TENSORS} | {_QUERIES: context.queries(None)}
    return {name: value for name, value in fields.items() if isinstance(value, Tensor)}


class _Writes(TorchDispatchMode):
    """Collects the memory that operators write into, as their schemas say."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                self.storages |= {storage_of(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
        return func(*args, **kwargs)


def _what_failed(score: Score, error: Exception) -> str:
    who = f"selector {name_of(score)!r}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame)]
    line = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    if isinstance(error, _LOOKS_AT_VALUES):
        return (
            f"{who} looks at the values of tensors{line}: it can't be compiled. Write torch.where in place of a "
            "branch, a product with a mask in place of an index by values, and the tensor itself in place of .item()"
        )
    reason = str(error).strip().splitlines()
    return f"{who} failed{line}: {type(error).__name__}{f': {reason[0]}' if reason else ''}"


def name_of(selector: str | Callable[..., Any]) -> str:
    """Return a selector's name."""
    return selector if isinstance(selector, str) else getattr(selector, "__name__", type(selector).__name__)


def _is_users(frame: traceback.FrameSummary) -> bool:
    """Return whether a line is in the code of a selector."""
    return not os.path.abspath(frame.filename).startswith(_LIBRARIES)

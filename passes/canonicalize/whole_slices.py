"""Slices that take a whole axis, written as such.

A layer of a cache with a sliding window keeps ``keys[:, :, -window + 1:]``. Where the sequence is shorter than that,
the slice takes all of it, and all of any shorter one: no window is left to be wrong. The traced shapes show it, as
numbers or because Dynamo has a guard on them.
"""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Graph

from ..fx.nodes import example_tensor
from ..fx.sizes import expression


def write_whole_slices(graph: Graph) -> None:
    """Rewrite each slice from a place counted from the end, where it takes the whole axis anyhow.

    Slices of other tensors, ellipses and new axes in an index leave it as it is.
    """
    for node in graph.find_nodes(op="call_function", target=operator.getitem):
        value, result, index = example_tensor(node.args[0]), example_tensor(node), node.args[1]
        parts = index if isinstance(index, tuple) else (index,)
        if value is None or result is None or value.ndim != result.ndim:
            continue
        if not all(isinstance(part, slice) for part in parts):
            continue
        sizes = zip(parts, value.shape, result.shape, strict=False)
        whole = tuple(
            slice(None) if _counts_from_end(part) and expression(before) == expression(after) else part
            for part, before, after in sizes
        )
        if whole != parts:
            node.args = (node.args[0], whole)


def _counts_from_end(part: Any) -> bool:
    return isinstance(part.start, int) and part.start < 0 and part.stop is None and part.step in (None, 1)

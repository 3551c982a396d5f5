"""Concatenations of one tensor with nothing, written as the copies that they are.

The first keys of a cache are appended to ``torch.tensor([])``. A constant like that, one for each layer, keeps PyTorch
from knowing the second of two equal layers by the first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..fx.nodes import example_tensor, replace_by_call
from ..fx.sizes import expression


def write_single_parts(graph: Graph) -> None:
    """Rewrite each ``torch.cat`` of which one part is not empty, where its result is laid out as the copy is."""
    for node in graph.find_nodes(op="call_function", target=torch.cat):
        parts = node.args[0] if node.args else None
        if not isinstance(parts, list | tuple):
            continue
        result, values = example_tensor(node), [example_tensor(part) for part in parts]
        if result is None or not _is_in_rows(result):
            continue
        if any(value is None or (value.dtype, value.device) != (result.dtype, result.device) for value in values):
            continue
        full = [part for part, value in zip(parts, values, strict=True) if value is not None and value.shape != (0,)]
        if len(full) == 1:
            replace_by_call(node, torch.clone, (full[0],), _is_constant, memory_format=torch.contiguous_format)


def _is_constant(node: Node) -> bool:
    return node.op == "call_function" and node.target is torch.tensor


def _is_in_rows(value: Tensor) -> bool:
    """Return whether the last axis is next to itself in memory, and each other one next to the one after it."""
    step, steps = expression(1), []
    for size in reversed(value.shape):
        steps.append(step)
        step = step * expression(size)
    return [expression(stride) for stride in value.stride()] == steps[::-1]

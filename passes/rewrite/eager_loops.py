"""Leaves what the passes added to a graph to PyTorch's own kernels, on a CPU.

There each loop that Inductor writes is a C++ file, or a part of one, and a file takes the compiler half a second or
more, whatever it holds. A selection is dozens of loops over a few numbers a token, run once a prompt: they take less
time than their compilation by orders of magnitude. On a GPU it is the other way round: each kernel is launched, and
Triton compiles them in parallel.

Inductor calls an operator as it is where its node says so (``custom["fallback_to_eager"]``). Versions that don't know
that, and other backends, don't read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ..fx.nodes import example_tensor, example_value
from ..fx.sizes import hint


def leave_to_eager(nodes: Iterable[Node], embeddings: Node) -> None:
    """Mark operators that are to be called as they are.

    Those that read or give more numbers than the hidden states have are not: a dense mask that is computed where it
    is read is never stored. Views are no loops.

    Args:
        nodes: what was added.
        embeddings: ``[B, S, C]``, on the device that the graph runs on.
    """
    states = example_tensor(embeddings)
    if states is None or states.device.type != "cpu":
        return
    most = _numbers(states)
    for node in nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or node.target.is_view:
            continue
        values = [example_value(each) for each in (node, *node.all_input_nodes)]
        if all(_numbers(leaf) <= most for leaf in tree_leaves(values) if isinstance(leaf, Tensor)):
            node.meta.setdefault("custom", {})["fallback_to_eager"] = True


def _numbers(value: Any) -> int:
    return math.prod(hint(size) for size in value.shape)

"""Counting floating-point operations by PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from .kernels import causal_attention, masked_attention  # noqa: F401 (they register operators)


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter, taught the operators that it lacks: attention on a CPU, and that of ours.

    A multiplication and an addition are two operations. Attention is counted in full, masked or not.
    """
    attentions = (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.sharp_compile.causal_attention,
        torch.ops.sharp_compile.masked_attention,
    )

    def flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        # PyTorch's own function takes heads that share keys from torch 2.12 on only.
        return 2 * query.numel() * key[-2] + 2 * query[:-1].numel() * key[-2] * value[-1]

    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(attentions, flops))


def count_flops(graph: GraphModule, inputs: Sequence[Any]) -> int | None:
    """Count the operations of a graph on fake tensors: it takes no memory, and the time of its Python code.

    Args:
        graph: A graph of Dynamo's, before or after our passes.
        inputs: What it is called with; those after its last input are left out.

    Returns:
        The number, or None for a graph that can't be run without data.
    """
    count = len(graph.graph.find_nodes(op="placeholder"))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(value) if isinstance(value, Tensor) else value for value in inputs[:count]]
    try:
        with torch.no_grad(), mode, flop_counter() as counter:
            graph(*fakes)
    except Exception:  # whatever an operator raises that needs data, or is not known to the counter
        return None
    return int(counter.get_total_flops())

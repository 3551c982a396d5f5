"""Lets the experts of a mixture be called without a loop over those that were chosen.

Most models of transformers hand their experts over to one of its implementations, of which ``grouped_mm`` is one graph.
Some have the loop only::

    for expert in chosen.nonzero():
        ...

How often it runs depends on data: Dynamo breaks the graph in each layer, and none of these graphs has a decoder. What
is traced for this backend calls ``grouped_mm`` instead, for classes that do the same on a small example.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import patches
from ..tracing import traces_for_sharp

_PARAMETERS = ["self", "hidden_states", "top_k_index", "top_k_weights"]


def make_traceable(module_class: type) -> bool:
    """Replace the ``forward`` of experts that are a loop, in what is traced for this backend.

    Returns:
        Whether the class is one of these, and had not been changed yet.
    """
    forward = vars(module_class).get("forward")
    if forward is None or hasattr(forward, "__wrapped__") or list(inspect.signature(forward).parameters) != _PARAMETERS:
        return False
    if not _is_what_grouped_mm_computes(module_class):
        return False
    patches.replace(
        module_class,
        "forward",
        _traceable,
        versions=patches.TRANSFORMERS,
        why="Dynamo would cut the decoder into a graph for each layer, none of which can be pruned",
        acts="what is traced for this backend",
    )
    return True


def _traceable(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if not (torch.compiler.is_dynamo_compiling() and traces_for_sharp()):
            return forward(self, hidden_states, top_k_index, top_k_weights)
        return _grouped(self, hidden_states, top_k_index, top_k_weights)

    return experts


def _grouped(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute the same as the experts' loop, ``[N, C]``, by a product of groups of rows with an expert's weights each.

    Args:
        self: experts with ``gate_up_proj`` [E, 2I, C] and ``down_proj`` [E, C, I].
        hidden_states: ``[N, C]``.
        top_k_index: ``[N, k]`` int64, the experts of each token.
        top_k_weights: ``[N, k]``.
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    as_grouped: Any = _AsGrouped(self)
    return grouped_mm_experts_forward(as_grouped, hidden_states, top_k_index, top_k_weights)


class _AsGrouped:
    """What ``grouped_mm`` of transformers wants to know of experts."""

    has_gate, is_concatenated = True, True
    has_bias = has_post_expert_norm = is_transposed = _is_expert_parallel = False

    def __init__(self, experts: Any) -> None:
        self.experts = experts
        self.num_experts = experts.num_experts
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        if hasattr(self.experts, "_apply_gate"):
            gated: Tensor = self.experts._apply_gate(gate_up)
            return gated
        gate, up = gate_up.chunk(2, dim=-1)
        return self.experts.act_fn(gate) * up


class _SmallConfig:
    """A config of any model, with small sizes that differ."""

    def __getattr__(self, name: str) -> Any:
        if name.endswith("act"):
            return "silu"
        return 4 if "expert" in name else 12 if "intermediate" in name else 16


def _is_what_grouped_mm_computes(module_class: type) -> bool:
    """Return whether experts of a class give what ``_grouped`` does: seen on a small example."""
    generator = torch.Generator().manual_seed(0)
    try:
        experts: Any = module_class(_SmallConfig())
        with torch.no_grad():
            for weights in experts.parameters():
                weights.copy_(torch.randn(weights.shape, generator=generator))
            tokens = torch.randn(5, experts.gate_up_proj.shape[-1], generator=generator)
            shares, chosen = torch.rand(5, experts.num_experts, generator=generator).topk(2)
            return torch.allclose(
                experts(tokens, chosen, shares), _grouped(experts, tokens, chosen, shares), atol=1e-5, rtol=1e-4
            )
    except Exception:  # a class that wants more than that, or a version without grouped_mm
        return False

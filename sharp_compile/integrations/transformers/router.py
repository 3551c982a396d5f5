"""The balancing loss of mixtures of experts, for router logits of a shortened sequence.

Each layer gives router logits ``[B * S, E]``, and the loss weighs them all by one mask ``[B, S]`` of the prompt. After
a cut a layer gives ``[B * S', E]``: its tokens are weighed by the mask at their own positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from ... import patches
from ...tensor_records import KEPT_POSITIONS

_NAME = "load_balancing_loss_func"


def install_in(module: ModuleType) -> bool:
    """Let the loss of a model's module take router logits that a pruned graph returned; others go to it as ever.

    Returns:
        Whether the module has such a loss, and it had not been changed yet.
    """
    loss = vars(module).get(_NAME)
    if loss is None or hasattr(loss, "__wrapped__"):
        return False
    patches.replace(
        module,
        _NAME,
        _of_own_tokens,
        versions=patches.TRANSFORMERS,
        why="a mask of S positions would weigh the router logits of S' tokens",
        acts="router logits that a pruned graph returned",
    )
    return True


def _of_own_tokens(loss: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(loss)
    def of_own_tokens(
        gate_logits: Any, num_experts: Any = None, top_k: Any = 2, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        if attention_mask is not None and attention_mask.ndim == 2 and isinstance(gate_logits, tuple):
            kept = [getattr(gate, KEPT_POSITIONS, None) for gate in gate_logits]
            if any(positions is not None for positions in kept):
                device = gate_logits[0].device
                masks = [attention_mask if at is None else attention_mask.gather(1, at) for at in kept]
                # All layers as one: each token has its own weight then.
                gate_logits = (torch.cat([gate.to(device) for gate in gate_logits]),)
                attention_mask = torch.cat([mask.reshape(1, -1) for mask in masks], 1)
        return loss(gate_logits, num_experts, top_k, attention_mask, **kwargs)

    return of_own_tokens

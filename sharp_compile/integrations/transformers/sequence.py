"""Keeps the functions whole in a graph by which hybrid models of transformers mix tokens in their order.

Convolutions, gated delta rules and state space scans are functions of transformers that stand for a kernel of
another package, with a definition in plain PyTorch that runs where the package is not installed. Dynamo would trace
that definition for one length, chunk by chunk. Kept whole, one node stands for it, which
``token_dim.sequence_functions`` knows to be right for any number of tokens; AOTAutograd traces it after the passes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch._dynamo import trace_rules

from ... import patches
from ...passes.token_dim.op_rules import allowed, register_op_rule
from ...passes.token_dim.sequence_functions import SEQUENCE_FUNCTIONS

# By the names of the kernels: each takes a whole sequence, and is causal.
_KERNELS = {
    "causal_conv1d_fn",
    "chunk_gated_delta_rule",
    "chunk_kda",
    "mamba_chunk_scan_combined",
    "selective_scan_fn",
}


def install() -> None:
    """Know the operator of the experts of a mixture: each token goes through its own, in no order at all."""
    # Importing it registers the operator, in the versions that have one.
    with contextlib.suppress(ModuleNotFoundError):
        import transformers.integrations.moe  # noqa: F401

    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        register_op_rule(torch.ops.transformers.grouped_mm_fallback, mixes_tokens=False)(allowed)


def _trace_through(function: Callable[..., Any]) -> None:
    """Undo ``torch._dynamo.allow_in_graph``, for which torch has no function of its own."""
    trace_rules._allowed_callable_ids.remove(id(function))


def keep_whole(module: ModuleType) -> bool:
    """Let each of those functions in a module be one node of a graph, if it runs its definition in PyTorch.

    Returns:
        Whether there was one that was not yet.
    """
    changed = False
    for function in list(vars(module).values()):
        if not inspect.isfunction(function) or function in SEQUENCE_FUNCTIONS:
            continue
        known = inspect.getclosurevars(function).nonlocals if hasattr(function, "__wrapped__") else {}
        # One that stands for a kernel knows the kernel's name; a model may also have its own, in PyTorch only.
        if known.get("func_name", function.__name__) in _KERNELS and not known.get("is_new_implementation"):
            patches.change(
                f"{function.__module__}.{function.__qualname__}",
                "one node of a graph (torch._dynamo.allow_in_graph)",
                functools.partial(torch._dynamo.allow_in_graph, function),
                functools.partial(_trace_through, function),
                versions=patches.TRANSFORMERS,
                why="Dynamo would trace its definition for one length, which is not right for another",
                acts="graphs of every backend in this process, with the same numbers",
            )
            SEQUENCE_FUNCTIONS.add(function)
            changed = True
    return changed

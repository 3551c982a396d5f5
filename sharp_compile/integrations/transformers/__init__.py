"""What transformers needs beside the graphs that it gives rise to. Where it is not loaded, nothing is done.

Nothing is changed before a model is compiled with this backend, and then only what the modules of that model define,
and a few functions that all share. Each of these looks for a mark of ours first (a cache that a pruned model filled, a
trace for this backend, logits that a pruned graph gave), and else runs what it was.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterable
from types import ModuleType

from torch import nn
from torch.fx import Graph

from ... import patches
from . import caches, deepstack, equal_layers, experts, loss, masks, positions, router, sequence
from .generation import check_target
from .heads import hands_states_on
from .layer_kinds import trace_apart
from .loss import install_late
from .own_generate import compile_own

__all__ = [
    "check_target",
    "compile_own",
    "hands_states_on",
    "install",
    "install_late",
    "prepare_graph",
    "prepare_model",
    "trace_apart",
]

_prepared: set[str] = set()
_lock = threading.RLock()


def install() -> None:
    """Prepare what all models share."""
    _prepare(())


def prepare_model(model: nn.Module) -> None:
    """Prepare what a model is made of for being compiled."""
    _prepare(type(part) for part in model.modules())


def prepare_graph(graph: Graph) -> bool:
    """Prepare the modules that a graph was traced from.

    Returns:
        Whether code was changed that Dynamo had traced already, or may have.
    """
    stacks = (node.meta.get("nn_module_stack") or {} for node in graph.nodes)
    return _prepare(cls for stack in stacks for _, cls in stack.values() if inspect.isclass(cls))


def _prepare(classes: Iterable[type]) -> bool:
    if "transformers" not in sys.modules:
        return False
    with _lock:
        names = {cls.__module__ for cls in classes if not cls.__module__.startswith("torch.")} - _prepared
        is_first = not _prepared
        changed = patches.install() or is_first
        if is_first:
            positions.install()
            caches.install()
            loss.install()
            sequence.install()
            equal_layers.install()
        for name in names:
            changed |= _prepare_module(sys.modules[name])
        # The name of this module stands for what all models share.
        _prepared.update(names, {__name__})
    return changed


def _prepare_module(module: ModuleType) -> bool:
    changed = [sequence.keep_whole(module), masks.install_in(module), router.install_in(module)]
    for cls in [each for each in vars(module).values() if inspect.isclass(each)]:
        changed += [deepstack.make_traceable(cls), experts.make_traceable(cls)]
    return any(changed)

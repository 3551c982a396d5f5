"""Hands graphs to the inner backend, which compiles them: now, on Dynamo's inputs, or when they first run."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor.config
from torch import SymInt
from torch._dynamo.backends.registry import lookup_backend
from torch.fx import GraphModule

from ..integrations import first_call
from ..options import Config
from ..passes.canonicalize.flex_to_sdpa import make_traceable
from ..passes.fx.garbage import without_gc
from ..passes.fx.nodes import copy_of, example_tensor, example_value, write_code
from ..passes.held_positions import tell_all_positions
from ..passes.rewrite.reuse_regions import reuse_regions

log = logging.getLogger(__name__)

Compiled = Callable[..., Any]


def compile_now(module: GraphModule, inputs: Sequence[Any], config: Config) -> Compiled:
    """Hand a graph to the inner backend; Inductor gets equal layers as calls of one."""
    first_call.now(f"{config.inner} compiles its graph")
    with without_gc():
        module = write_code(tell_all_positions(module))
        shorter = _with_layers_once(module) if reuses_layers(config) else None
    backend: Callable[..., Compiled] = lookup_backend(config.inner)
    if config.inner == "inductor":
        backend = functools.partial(backend, config_patches=_settings_of_inductor(module, config))
    if shorter is not None:
        try:
            return backend(shorter, inputs)
        except Exception as error:  # what a version of Inductor can't do with such calls, it may without
            log.debug("layers are compiled one by one: %s: %s", type(error).__name__, error)
    return backend(module, inputs)


def _with_layers_once(module: GraphModule) -> GraphModule | None:
    """Return a graph with equal layers as calls of one; None where there are none, or none that can be."""
    try:
        return reuse_regions(module)
    except Exception as error:
        log.debug("equal layers were not found: %s: %s", type(error).__name__, error)
        return None


def _settings_of_inductor(module: GraphModule, config: Config) -> dict[str, Any]:
    """Return the settings with which Inductor compiles a graph, the user's before ours.

    On a CPU what lies between two products of matrices is a C++ file to build. Inductor moves the projections of an
    attention apart, each to where its result is read; side by side, as models write them, all three are followed by
    one file.
    """
    values = (example_tensor(node) for node in module.graph.find_nodes(op="placeholder"))
    on_cpu = all(value.device.type == "cpu" for value in values if value is not None)
    return ({"reorder_for_locality": False} if on_cpu else {}) | dict(config.inductor)


def reuses_layers(config: Config) -> bool:
    """Return whether equal layers are compiled once: by Inductor, which can, and where no gradients are computed."""
    return config.reuse_layers and config.inner == "inductor" and not torch.is_grad_enabled()


def is_overwritten(config: Config) -> bool:
    """Return whether the next run of a graph writes into what this one returned: CUDA graphs are replayed in place."""
    default = torch._inductor.config.triton.cudagraphs
    return config.inner == "cudagraphs" or dict(config.inductor).get("triton.cudagraphs", default)


def compile_later(module: GraphModule, backend: Callable[..., Compiled]) -> Compiled:
    """Return a graph that Dynamo traces once more when it first runs, for another backend."""
    symbolic = any(isinstance(example_value(node), SymInt) for node in module.graph.find_nodes(op="placeholder"))
    lock = threading.RLock()

    # Dynamo never traces code that is made while it compiles, and compiling is where we are: the code of the
    # module has to be made by the first call.
    @functools.cache
    def compiled() -> Compiled:
        traceable = copy_of(module)
        make_traceable(traceable)
        # Precompiled code is found by the name of its function, which is the same for all such graphs.
        with torch._dynamo.config.patch(caching_precompile=False):
            return torch.compile(write_code(traceable), backend=backend, dynamic=True if symbolic else None)

    def run(*args: Any) -> Any:
        with lock:
            once = compiled()
        return once(*args)

    return run


def compiler(config: Config, inputs: Sequence[Any], later: bool) -> Callable[[GraphModule], Compiled]:
    """Return what compiles a graph for the inner backend: now, on the inputs of Dynamo's, or when it first runs."""
    now = functools.partial(compile_now, config=config)
    return functools.partial(compile_later, backend=now) if later else functools.partial(now, inputs=inputs)

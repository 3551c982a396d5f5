"""Hands graphs to the inner backend, which compiles them: now, on Dynamo's inputs, or when they first run."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import SymInt
from torch._dynamo.backends.registry import lookup_backend
from torch.fx import GraphModule

from ..options import Config
from ..passes.canonicalize.flex_to_sdpa import make_traceable
from ..passes.fx.nodes import copy_of, example_value, write_code
from ..passes.held_positions import tell_all_positions

Compiled = Callable[..., Any]


def compile_now(module: GraphModule, inputs: Sequence[Any], config: Config) -> Compiled:
    """Hand a graph to the inner backend."""
    module = write_code(tell_all_positions(module))
    backend: Callable[..., Compiled] = lookup_backend(config.inner)
    if config.inductor:
        return backend(module, inputs, config_patches=dict(config.inductor))
    return backend(module, inputs)


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

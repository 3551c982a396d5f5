"""Acts where something is compiled with this backend, by whatever door: every one leads through ``OptimizeContext``.

``torch.compile(model)`` and ``model.compile()`` give Dynamo a module or one of its methods. What is given decides
whether a graph with a decoder can ever reach the backend:

    a module              its call is compiled. `generate` of what is returned runs the module itself, uncompiled.
    a method of a module  likewise; a module with a `generate` of its own, or one that wraps others, may call the models
                          inside past it. So these are compiled too.

What is compiled with another backend passes through as it came, after one check of identity.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizeContext, OptimizedModule, _TorchDynamoContext, innermost_backend
from torch._dynamo.utils import get_optimize_ddp_mode

from .. import patches
from ..options import Config, with_mode
from . import first_call, precompilation, regions, transformers
from .declined import decline
from .marked import holds_compiled, mark

Backend = Callable[..., Any]

_is_private: ContextVar[bool] = ContextVar("is_private", default=False)


def install(backend: Backend, check: Callable[..., Config]) -> None:
    """Have Dynamo tell of what is compiled with ``backend``.

    Args:
        backend: the function that ``torch.compile`` finds by the name of the backend.
        check: called with ``options=`` and ``mode=``, as far as they are given, where something is compiled: what it
            refuses is refused there, and not at the first call.
    """
    patches.replace(
        OptimizeContext,
        "__call__",
        functools.partial(_noticing, backend=backend, check=check),
        versions=patches.TORCH,
        why="a module's own generate, wrappers and threads would run what they call uncompiled, in silence",
        acts="what is compiled with this backend",
    )
    regions.keep_in_threads()


def _noticing(original: Callable[..., Any], backend: Backend, check: Callable[..., Config]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(context: OptimizeContext, target: Any) -> Any:
        if backend_of(context) is not backend or _is_private.get():
            return original(context, target)
        setting = check(**arguments_of(context))
        return _compile(functools.partial(original, context), context, target, setting)

    return call


@contextmanager
def private() -> Iterator[None]:
    """Compile something for one's own use meanwhile: nothing else is compiled for it, and nothing is said."""
    token = _is_private.set(True)
    try:
        yield
    finally:
        _is_private.reset(token)


def _compile(original: Callable[[Any], Any], context: OptimizeContext, target: Any, setting: Config) -> Any:
    module = target if isinstance(target, torch.nn.Module) else getattr(target, "__self__", None)
    transformers.install()
    if isinstance(module, torch.nn.Module):
        transformers.prepare_model(module)
    context.enter_exit_hooks.append(_keep_graphs_whole)
    if setting.on_skip != "silent":
        context.enter_exit_hooks.append(first_call.watch)
    regions.keep_apart(context)
    precompilation.name_apart(context, target, setting)
    compiled, options = original(target), options_given(context)
    if not isinstance(module, torch.nn.Module):
        return compiled
    transformers.check_target(module, target, options)
    if isinstance(compiled, OptimizedModule):
        _say_generate_is_not_compiled(compiled, options)
    elif target == module._call_impl:  # `module.compile()`, which gives its own call
        mark(compiled, options)
        transformers.compile_own(module, options)
    return compiled


def _keep_graphs_whole() -> Callable[[], None]:
    """Keep Dynamo from cutting the graphs of a ``DistributedDataParallel`` into buckets, for the length of a call.

    It does so to reduce the gradients of one while the next are computed. In a part of the decoder nothing can be
    pruned: the other parts would see the full length.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return _nothing
    return _without_buckets() if get_optimize_ddp_mode() == "ddp_optimizer" else _nothing


_without_buckets = torch._dynamo.config._make_closure_patcher(optimize_ddp=False)


def _nothing() -> None:
    pass


def _say_generate_is_not_compiled(compiled: OptimizedModule, options: Mapping[str, Any]) -> None:
    """Let ``generate`` of what ``torch.compile(model)`` returned say that it runs the model itself."""
    if callable(getattr(compiled._orig_mod, "generate", None)):
        # Past `OptimizedModule.__setattr__`, which would write to the model.
        vars(compiled)["generate"] = functools.partial(_generate_past, compiled._orig_mod, options)


def _generate_past(module: torch.nn.Module, options: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    if not holds_compiled(module):
        decline(
            "torch.compile(model).generate(...) runs the model itself, which is not compiled: call "
            'model.compile(backend="sharp", options=...), and then model.generate(...)',
            options,
        )
    return module.generate(*args, **kwargs)  # type: ignore[operator]


def backend_of(context: _TorchDynamoContext) -> Any:
    """Return the backend that a context compiles with, without what Dynamo wraps around it."""
    backend = innermost_backend(context.callback)  # type: ignore[arg-type]
    return getattr(backend, "compiler_fn", backend)


def options_given(context: _TorchDynamoContext) -> Mapping[str, Any]:
    """Return the options of the backend that a context compiles with, those that its ``mode`` stands for among them."""
    arguments = arguments_of(context)
    return with_mode(arguments.get("options"), arguments.get("mode")) or {}


def arguments_of(context: _TorchDynamoContext) -> dict[str, Any]:
    """Return what a context hands to its backend by keyword: ``options`` and ``mode``, as far as they are given."""
    arguments: dict[str, Any] = getattr(innermost_backend(context.callback), "kwargs", {})  # type: ignore[arg-type]
    return arguments

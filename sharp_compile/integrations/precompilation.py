"""PyTorch's precompilation: code of Dynamo that outlasts its process, and what it calls.

Dynamo writes such code down under the name and line of the function that was compiled. So it would find what another
backend made of it, or what this one made with other options: unpruned, or pruned to another share, in silence. What is
compiled with this backend has names of its own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import _reset_precompile_entries
from torch._dynamo import aot_compile, package
from torch._dynamo.eval_frame import innermost_fn
from torch._dynamo.precompile_context import BackendCacheArtifact, PrecompileContext
from torch.fx import GraphModule

from ..options import Config
from ..selector_registry import find_rule

log = logging.getLogger(__name__)


class _NamedApart(package.CompilePackage):
    """What Dynamo writes down of one function, under the function's name and a suffix."""

    suffix: str

    @property
    def source_id(self) -> str:
        """The name of the file."""
        return self.source_id_from_fn(_renamed(self._innermost_fn, self.suffix))


def name_apart(context: Any, target: Any, setting: Config) -> None:
    """Name what a context of Dynamo's is about to compile by its options, and load what is there under that name.

    Args:
        context: that of ``target``; nothing is done where it does not precompile.
        target: a function or a module.
        setting: the options that it is compiled with.
    """
    held = getattr(context, "_package", None)
    if held is None or held.is_initialized():
        return
    owner = type(target if isinstance(target, nn.Module) else getattr(target, "__self__", None))
    # `model.compile()` compiles the same method of any model.
    held.__class__, held.suffix = _NamedApart, f" of {owner.__module__}.{owner.__qualname__} for {_digest(setting)}"
    function = target.forward if isinstance(target, nn.Module) else target
    found = package.DynamoCache.load(_renamed(innermost_fn(function), held.suffix))
    if found is not None:
        try:
            held.initialize(function, found.dynamo, ignore_inlined_sources=False)
            held.install(found.backends)
            return
        except Exception as error:  # other versions, other sources, and guards that PyTorch writes and can't read
            log.warning("sharp_compile compiles anew what was precompiled: %s: %s", type(error).__name__, error)
            _unload(held)
    held.initialize(function, None, ignore_inlined_sources=False)


def _unload(held: package.CompilePackage) -> None:
    """Have no code run that was loaded: it may call what was not."""
    if held.is_initialized():
        for code, entry in held._codes.items():
            _reset_precompile_entries(package._lookup_code(entry) if entry.code_source else code)
        held._initialized = False


def _renamed(function: Any, suffix: str) -> FunctionType:
    """Return a function of the same code, with another name."""
    function = getattr(function, "__func__", function)
    renamed = FunctionType(function.__code__, {}, closure=function.__closure__)
    renamed.__qualname__ = function.__qualname__ + suffix
    return renamed


def _digest(setting: Config) -> str:
    """Return what is the same in each process for the same options and the same code of ours."""
    if may_change(setting):
        return uuid.uuid4().hex
    return hashlib.sha256(_our_code() + pickle.dumps(setting)).hexdigest()


def may_change(setting: Config) -> bool:
    """Return whether options name functions of the user's, which may be others in the next process."""
    score: Any = find_rule(setting).score
    while isinstance(score, functools.partial):
        score = score.func
    is_ours = str(getattr(score, "__module__", "")).startswith("sharp_compile.")
    return callable(setting.inner) or not is_ours


@functools.cache
def _our_code() -> bytes:
    """Return what is the same for the same code of ours: what it makes of a graph may change with it."""
    names = ("sharp_compile", "sharp_compile.passes", "sharp_compile.kernels")
    folders = {Path(path) for name in names for path in importlib.import_module(name).__path__}
    files = sorted({file for folder in folders for file in folder.rglob("*.py")})
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


def take_backend_id(module: GraphModule) -> str | None:
    """Take from a graph the name by which Dynamo's code calls it, so that nobody writes a part of it down under that.

    Returns:
        The name; None where code is not precompiled.
    """
    name: str | None = vars(module).pop("_backend_id", None)
    return name if torch._dynamo.config.caching_precompile else None


@dataclass
class Artifact(BackendCacheArtifact[Any]):
    """A compiled graph of ours as bytes, and what reads them."""

    read: Callable[[bytes], Any]

    def after_deserialization(self) -> Any:
        """Return the graph, ready to run."""
        return self.read(self.content)


def record_artifact(backend_id: str, content: bytes, read: Callable[[bytes], Any]) -> None:
    """Have Dynamo write a graph down with the code that calls it."""
    PrecompileContext.record_artifact(Artifact(backend_id, content, read))


@dataclass(frozen=True)
class Written:
    """What a backend compiled, by PyTorch's own means: the class that reads it, and the bytes."""

    reader: type
    content: bytes

    def read(self) -> Callable[..., Any]:
        """Return it, ready to run."""
        found: Callable[..., Any] = self.reader.deserialize_compile_artifacts(self.content)  # type: ignore[attr-defined]
        return found


def written_by(compiled: Any) -> Written:
    """Write down what a backend compiled.

    Raises:
        Exception: of many kinds, where that can't be.
    """
    held = getattr(compiled, "__self__", None)
    if isinstance(held, GraphModule):
        from torch._dynamo.aot_compile_types import GraphModuleSerializableCallable

        compiled = GraphModuleSerializableCallable(held)
    elif not isinstance(compiled, aot_compile.SerializableCallable):
        compiled = aot_compile.BundledAOTAutogradSerializableCallable(compiled)
    return Written(type(compiled), compiled.serialize_compile_artifacts(compiled))

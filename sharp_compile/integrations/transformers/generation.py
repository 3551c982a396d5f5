"""How transformers calls models: which parts generate, and which ways of compiling one never reach its prefill."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from ...config import Config
from ..declined import decline
from ..marked import is_compiled
from ..on_import import on_import

_WAY = 'compile the whole model: model.compile(backend="sharp", options=...) or sharp_compile.compile(model, ...)'

# The models of which it was said that a `CompileConfig` compiles no prefill.
_said: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def install() -> None:
    """Let `generate` say it when its `CompileConfig` names this backend, whether or not it will compile anything.

    For the time when transformers is loaded.
    """
    on_import("transformers.generation.utils", _install_in)


def _install_in(utils: Any) -> None:
    mixin = utils.GenerationMixin
    original = mixin._valid_auto_compile_criteria

    @functools.wraps(original)
    def check(self: Any, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        config = generation_config.compile_config
        if config is not None and _is_ours(config.backend):
            _say_prefill_is_not_compiled(self, Config.parse(config.options))
        can_compile: bool = original(self, model_kwargs, generation_config)
        return can_compile

    mixin._valid_auto_compile_criteria = check


def generating_parts(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The models in `model` that its `generate`, or its user, may call past its own call.

    A model that generates as all do calls itself, so there are none.
    """
    if "transformers" not in sys.modules:
        return
    from transformers import GenerationMixin

    if getattr(type(model), "generate", None) is GenerationMixin.generate:
        return
    for part in model.modules():
        if part is not model and isinstance(part, GenerationMixin):
            yield part


def check_target(module: torch.nn.Module, target: Any, config: Config) -> None:
    """Say it if what is compiled, `module` or its method `target`, never sees a prompt in one graph with a decoder.

    Raises:
        CannotPrune: if so, with ``on_skip="raise"``.
    """
    if "transformers" not in sys.modules:
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    if isinstance(module, GradientCheckpointingLayer):
        decline(
            f"a single layer is compiled ({type(module).__name__}), as compile_regions of accelerate does, so that no "
            f"graph shows the layers behind it; {_WAY}",
            config,
        )
    latest = getattr(module, "_last_compile_config", None)
    if latest is not None and _is_ours(latest.backend) and getattr(target, "__func__", None) is type(module).__call__:
        _say_prefill_is_not_compiled(module, config)


def _is_ours(backend: Any) -> bool:
    from ...backend import sharp

    return backend == "sharp" or backend is sharp


def _say_prefill_is_not_compiled(model: torch.nn.Module, config: Config) -> None:
    if model in _said or is_compiled(model):
        return
    _said.add(model)
    decline(
        f"a CompileConfig compiles the steps of decoding, on a static cache, and not the prefill; {_WAY}",
        config,
    )

"""Ways of compiling a model of transformers that never reach its prefill: they say so, and which way does."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from ... import patches
from ..declined import decline
from ..marked import options_of
from ..ours import is_ours

_WAY = 'compile the whole model: model.compile(backend="sharp", options=...) or sharp_compile.compile(model, ...)'

# The method of ``generate`` that runs an encoder: since transformers 5.24, and before.
_RUNS_ENCODER = (
    "_prepare_text_encoder_decoder_kwargs_for_generation",
    "_prepare_encoder_decoder_kwargs_for_generation",
)

# The models of which it was said that what they call compiles no prefill.
_said: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def watch(utils: ModuleType) -> None:
    """Let ``generate`` of ``transformers.generation.utils`` say it when its ``CompileConfig`` names this backend."""
    patches.replace(
        utils.GenerationMixin,
        "_valid_auto_compile_criteria",
        _saying_what_is_not_compiled,
        versions=patches.TRANSFORMERS,
        why="CompileConfig(backend='sharp') compiles no prefill, and would prune nothing in silence",
        acts="calls whose CompileConfig names this backend; it only warns",
    )
    patches.replace(
        utils.GenerationMixin,
        next(name for name in _RUNS_ENCODER if hasattr(utils.GenerationMixin, name)),
        _saying_encoders_are_not_compiled,
        versions=patches.TRANSFORMERS,
        why="generate runs an encoder by itself, which is no compiled call: nothing would be pruned, in silence",
        acts="models that are compiled for this backend; it only warns",
    )


def _saying_what_is_not_compiled(original: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(original)
    def check(self: Any, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        config = generation_config.compile_config
        if config is not None and is_ours(config.backend):
            _say_prefill_is_not_compiled(self, config.options or {})
        return original(self, model_kwargs, generation_config)

    return check


def _saying_encoders_are_not_compiled(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = options_of(self)
        if options is not None and self not in _said:
            _said.add(self)
            decline(
                "generate runs the encoder of an encoder-decoder by itself, and that is not compiled: only forward is",
                options,
            )
        return original(self, *args, **kwargs)

    return prepare


def check_target(module: torch.nn.Module, target: Any, options: Mapping[str, Any]) -> None:
    """Say it if what is compiled, ``module`` or its method ``target``, never sees a prompt in one graph with a decoder.

    Raises:
        CannotPrune: if so, with ``on_skip="raise"``.
    """
    if "transformers" not in sys.modules:
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    if isinstance(module, GradientCheckpointingLayer):
        decline(
            f"a single layer is compiled ({type(module).__name__}), as compile_regions of accelerate does, so that no "
            f"graph shows the layers after it; {_WAY}",
            options,
        )
    config = getattr(module, "_last_compile_config", None)
    if config is not None and is_ours(config.backend) and getattr(target, "__func__", None) is type(module).__call__:
        _say_prefill_is_not_compiled(module, options)


def _say_prefill_is_not_compiled(model: torch.nn.Module, options: Mapping[str, Any]) -> None:
    if model in _said or options_of(model) is not None:
        return
    _said.add(model)
    decline(
        f"a CompileConfig compiles the steps of decoding, on a static cache, and not the prefill; {_WAY}",
        options,
    )

"""Compiles what a ``generate`` of a model's own calls past its ``forward``.

Most models of transformers generate by ``GenerationMixin.generate``, which calls the model. Some have a ``generate`` of
their own, which merges the visual features and calls the ``generate`` of their language model (BLIP-2, Kosmos-2), and
so have models that wrap another (PEFT). No backend would be asked there. So the parts that can generate are compiled
when such a ``generate`` is first called on a model that was compiled with this backend, with that model's options.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ... import patches
from ..marked import options_of
from ..ours import backend
from . import prompt

_NAME = "generate"
_ours: set[Callable[..., Any]] = set()
_parts: weakref.WeakKeyDictionary[torch.nn.Module, Mapping[str, Any]] = weakref.WeakKeyDictionary()


def install_in(cls: type) -> None:
    """Have a class's own ``generate`` compile what it calls; nothing is changed for models that are not compiled.

    Does nothing to a class that has none, or that is the one all models share.
    """
    own = vars(cls).get(_NAME)
    if not inspect.isfunction(own) or own in _ours or cls.__name__ == "GenerationMixin":
        return

    patches.replace(
        cls,
        _NAME,
        _compiling_parts,
        versions=patches.TRANSFORMERS,
        why="it calls its language model past the compiled call: no backend would be asked",
        acts="models that were compiled with this backend",
    )


def _compiling_parts(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = options_of(self)
        if options is None:
            return own(self, *args, **kwargs)
        _compile_parts(self, options)
        call = functools.partial(own, self)
        return prompt.telling(call, inspect.signature(call), self, options)(*args, **kwargs)

    _ours.add(generate)
    return generate


def compile_own(model: torch.nn.Module, options: Mapping[str, Any]) -> None:
    """Do so for a compiled ``model`` at once, of whatever class; it may wrap another and have that one's ``generate``.

    A wrapper without one holds models whose ``generate`` is called past it (DDP). Does nothing to a model that
    generates as all do.
    """
    if "transformers" not in sys.modules:
        return
    from transformers import GenerationMixin

    owner = next((cls for cls in type(model).__mro__ if _NAME in vars(cls)), None)
    if owner is not GenerationMixin:
        if owner is not None:
            install_in(owner)
        _compile_parts(model, options)


def _compile_parts(model: torch.nn.Module, options: Mapping[str, Any]) -> None:
    """Compile the models in a model that can generate, unless they are so already, or by the user."""
    from transformers import GenerationMixin

    from ..recompile_limit import isolated

    for part in model.modules():
        is_ours = part in _parts
        if part is model or not isinstance(part, GenerationMixin) or (part._compiled_call_impl and not is_ours):
            continue
        if not part._compiled_call_impl or _parts[part] != options:
            part.compile(backend=backend(), options=dict(options), **isolated())
            prompt.tell_visual_tokens(part, options)
            _parts[part] = dict(options)

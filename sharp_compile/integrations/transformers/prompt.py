"""Tells where the visual tokens of a prompt are, by its token ids.

For models of transformers that put visual features among the embeddings in code that Dynamo runs eagerly, so that no
graph shows it (see ``visual_annotation``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...visual_annotation import visual_tokens
from .calls import calls_under_way
from .modality import placeholder_ids

_PIXELS = ("pixel_values", "pixel_values_videos")
_ENCODED = "mm_encoder_outputs"


def tell_visual_tokens(model: torch.nn.Module, options: Mapping[str, Any]) -> None:
    """Let each call of a compiled ``model`` tell; do nothing to one whose config names no such tokens.

    With the option ``modality`` these are the tokens of that modality.
    """
    call = model._compiled_call_impl
    if call is not None:
        model._compiled_call_impl = telling(call, inspect.signature(model.forward), model, options)


def telling(
    call: Callable[..., Any], signature: inspect.Signature, model: torch.nn.Module, options: Mapping[str, Any]
) -> Callable[..., Any]:
    """``call``, which takes the prompt's ``input_ids`` by its signature, telling of visual tokens among them."""
    known = torch.tensor(placeholder_ids(getattr(model, "config", None), options.get("modality", "visual")))
    if not len(known) or "input_ids" not in signature.parameters:
        return call
    # Copied once: a device is waited for while it gets what is in ordinary host memory.
    known_on = functools.cache(known.to)

    @functools.wraps(call)
    def tell(*args: Any, **kwargs: Any) -> Any:
        ids = signature.bind_partial(*args, **kwargs).arguments.get("input_ids")
        # `is_compiling` would be true in all threads while one of them compiles.
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or torch.compiler.is_dynamo_compiling():
            return call(*args, **kwargs)
        with visual_tokens(torch.isin(ids, known_on(ids.device))):
            return call(*args, **kwargs)

    return tell


def without_prompt(tokens: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """The answer ``[N]`` among the tokens of one row that `generate` returned: most models give the prompt back first.

    Args:
        tokens: ``[L + N]`` or ``[N]``.
        prompt: ``[L]``.
    """
    return tokens[len(prompt) :] if tokens[: len(prompt)].equal(prompt) else tokens


def is_prompt_with_pixels(inputs: Sequence[Any]) -> bool:
    """Whether a model of transformers is being called with pixels, and `inputs` has embeddings of all of its tokens.

    Pixels, or what a tower made of them before.
    """
    tensors = (value for value in inputs if isinstance(value, torch.Tensor))
    shapes = [value.shape[:2] for value in tensors if value.ndim == 3 and value.shape[1] > 1]
    for _, given in calls_under_way() if shapes else ():
        ids = given.get("input_ids")
        has = any(isinstance(given.get(name), torch.Tensor) for name in _PIXELS) or bool(given.get(_ENCODED))
        if has and isinstance(ids, torch.Tensor):
            return ids.shape in shapes
    return False


def has_pixels() -> bool:
    """Return whether a model of transformers is being called with pixels."""
    return any(
        name.startswith("pixel_values") and isinstance(value, torch.Tensor)
        for _, given in calls_under_way()
        for name, value in given.items()
    )

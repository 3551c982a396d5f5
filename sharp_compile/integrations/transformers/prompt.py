"""Tells where the visual tokens of a prompt are, by its token ids.

For models of transformers that put visual features among the embeddings in code that Dynamo runs eagerly, so that no
graph shows it (see `said`).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...said import visual_tokens

_PLACEHOLDERS = ("image_token_id", "video_token_id")
_PIXELS = ("pixel_values", "pixel_values_videos")
_ENCODED = "mm_encoder_outputs"


def tell_visual_tokens(model: torch.nn.Module) -> None:
    """Lets each call of a compiled `model` tell; does nothing to one whose config names no visual tokens."""
    if model._compiled_call_impl is not None:
        model._compiled_call_impl = _telling(model._compiled_call_impl, inspect.signature(model.forward), model)


def compile_own_generate(model: torch.nn.Module, options: dict[str, object]) -> None:
    """Compiles what a `generate` of the model's own may call past its `forward`: the models in it that can generate.

    Such a model may also be one that wraps another (PEFT). The prompt's visual tokens are told to all of them. Nothing
    is done to a model that generates as all models do.
    """
    if "transformers" not in sys.modules:
        return
    from transformers import GenerationMixin

    generating: Any = model  # mypy: a method is replaced
    if not hasattr(model, "generate") or getattr(type(model), "generate", None) is GenerationMixin.generate:
        return
    from ...backend import sharp

    for part in model.modules():
        if part is not model and isinstance(part, GenerationMixin):
            part.compile(backend=sharp, options=options)
            tell_visual_tokens(part)
    generating.generate = _telling(generating.generate, inspect.signature(generating.generate), model)


def _telling(call: Callable[..., Any], signature: inspect.Signature, model: torch.nn.Module) -> Callable[..., Any]:
    """`call`, which takes the prompt's ``input_ids`` by its signature, and tells of visual tokens among them."""
    ids = [getattr(getattr(model, "config", None), name, None) for name in _PLACEHOLDERS]
    known = torch.tensor([each for each in ids if isinstance(each, int)])
    if not len(known) or "input_ids" not in signature.parameters:
        return call

    @functools.wraps(call)
    def tell(*args: Any, **kwargs: Any) -> Any:
        ids = signature.bind_partial(*args, **kwargs).arguments.get("input_ids")
        # `is_compiling` would be true in all threads while one of them compiles.
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or torch.compiler.is_dynamo_compiling():
            return call(*args, **kwargs)
        with visual_tokens(torch.isin(ids, known.to(ids.device))):
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
    if not shapes or "transformers" not in sys.modules:
        return False
    from transformers import PreTrainedModel

    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        given = frame.f_locals
        ids = given.get("input_ids")
        has = any(isinstance(given.get(name), torch.Tensor) for name in _PIXELS) or bool(given.get(_ENCODED))
        if has and isinstance(ids, torch.Tensor) and isinstance(given.get("self"), PreTrainedModel):
            return ids.shape in shapes
    return False

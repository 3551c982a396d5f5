"""Tells where the visual tokens of a prompt are, by its token ids.

For models of transformers that put visual features among the embeddings in code that Dynamo runs eagerly, so that no
graph shows it (see `said`).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ...said import visual_tokens

_PLACEHOLDERS = ("image_token_id", "video_token_id")
_PIXELS = ("pixel_values", "pixel_values_videos")
_ENCODED = "mm_encoder_outputs"


def tell_visual_tokens(model: torch.nn.Module) -> None:
    """Lets each call of a compiled `model` tell; does nothing to one whose config names no visual tokens."""
    config = getattr(model, "config", None)
    ids = [getattr(config, name, None) for name in _PLACEHOLDERS]
    known = torch.tensor([each for each in ids if isinstance(each, int)])
    compiled = model._compiled_call_impl
    parameters = inspect.signature(model.forward)
    if not len(known) or compiled is None or "input_ids" not in parameters.parameters:
        return

    @functools.wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        ids = parameters.bind_partial(*args, **kwargs).arguments.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or torch.compiler.is_compiling():
            return compiled(*args, **kwargs)
        with visual_tokens(torch.isin(ids, known.to(ids.device))):
            return compiled(*args, **kwargs)

    model._compiled_call_impl = call


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

"""Visual tokens that the caller tells of, for models that inject features where no graph shows it.

A pass finds visual tokens where a graph injects their features. Some models do that in code that Dynamo runs
eagerly, and some people compile the language model alone. They can say where the tokens are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from .link import Link

_said: ContextVar[Tensor | None] = ContextVar("visual_tokens", default=None)


@contextmanager
def visual_tokens(is_visual: Tensor) -> Iterator[None]:
    """Says which tokens of a prompt are visual, while a compiled model is called with it.

    Only a graph that takes embeddings ``[B, S, C]`` as an input, and that no other graph has told where the
    visual tokens are in them, makes use of it.

    Args:
        is_visual: ``[B, S]`` bool, for the sequence that the decoder is called with.

    Raises:
        ValueError: for another shape or type.
    """
    if is_visual.ndim != 2 or is_visual.dtype.is_floating_point or is_visual.dtype.is_complex:
        raise ValueError(f"is_visual must be bool [B, S], not {is_visual.dtype} {list(is_visual.shape)}")
    token = _said.set(is_visual.bool())
    try:
        yield
    finally:
        _said.reset(token)


def is_said() -> bool:
    """Whether anything is said of the prompt, be it that none of its tokens is visual."""
    return _said.get() is not None


def find(inputs: Sequence[Any]) -> tuple[int, Link] | None:
    """The place of the embeddings among the inputs of a graph, and what was said of them; None if nothing was."""
    said = _said.get()
    if said is None:
        return None
    for place, value in enumerate(inputs):
        is_float = isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()
        if is_float and value.shape[:2] == said.shape:
            visual = int(said.sum())
            # No frame is known: the decoder's graph parts them where text is between.
            frame = said.to(value.device).long() - 1
            return (place, Link(frame, visual * value.shape[2])) if visual else None
    return None

"""Visual tokens that the caller tells of, for models that inject features where no graph shows it.

A pass finds visual tokens where a graph injects their features. Some models do that in code that Dynamo runs
eagerly, and some people compile the language model alone. They can say where the tokens are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_annotated: ContextVar[Tensor | None] = ContextVar("visual_tokens", default=None)


@contextmanager
def visual_tokens(is_visual: Tensor) -> Iterator[None]:
    """Say which tokens of a prompt are visual, while a compiled model is called with it.

    Only a graph that takes embeddings ``[B, S, C]`` as an input, and that no other graph has told where the
    visual tokens are in them, makes use of it.

    Args:
        is_visual: ``[B, S]`` bool, for the sequence that the decoder is called with.

    Raises:
        ValueError: for another shape or type.
    """
    if is_visual.ndim != 2 or is_visual.dtype.is_floating_point or is_visual.dtype.is_complex:
        raise ValueError(f"is_visual must be bool [B, S], not {is_visual.dtype} {list(is_visual.shape)}")
    token = _annotated.set(is_visual.bool())
    try:
        yield
    finally:
        _annotated.reset(token)


def annotated_tokens() -> Tensor | None:
    """Return which tokens ``[B, S]`` the caller says are visual, be it none; None where nothing is said."""
    return _annotated.get()

"""Masks that are made by broadcasting, for programs: what is made by ``torch.vmap`` can't be exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

_BY_VMAP, _INDICES = "_vmap_expansion_sdpa", "_non_vmap_expansion_sdpa"


@contextlib.contextmanager
def broadcasting() -> Iterator[None]:
    """Let transformers evaluate functions of masks on whole index tensors, as it does for its own, meanwhile.

    As its exporters have it, for functions of indices: those that a model combines with the causal mask.
    """
    from transformers import masking_utils

    by_vmap = getattr(masking_utils, _BY_VMAP, None)
    indices: Callable[..., Any] | None = getattr(masking_utils, _INDICES, None)
    if by_vmap is None or indices is None:
        yield
        return

    def by_broadcasting(mask_function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def expanded(*aranges: Tensor) -> Tensor:
            return mask_function(*indices(*aranges)).expand([len(arange) for arange in aranges])

        return expanded

    setattr(masking_utils, _BY_VMAP, by_broadcasting)
    try:
        yield
    finally:
        setattr(masking_utils, _BY_VMAP, by_vmap)

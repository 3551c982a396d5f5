"""Models that share their weights, to be compiled in different ways."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch


def weight_sharing_copy(model: torch.nn.Module) -> Any:
    """Return a second model with the same weights, not copied, to be compiled in another way."""
    shared = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})

"""Looks through wrappers for the model that is to be compiled.

A wrapper that hands calls on as they are has no graph worth compiling, and ``generate`` often goes past it.
"""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from .integrations import peft


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside of ``DistributedDataParallel`` and PEFT's wrappers; ``model`` where there are none."""
    while (inside := _inside(model)) is not None:
        model = inside
    return model


def _inside(model: torch.nn.Module) -> torch.nn.Module | None:
    return model.module if isinstance(model, DistributedDataParallel) else peft.base_of(model)

"""The selection rules, one a file: each scores the tokens of a layer.

A rule is plain PyTorch and knows nothing of graphs; `passes.select` traces it into one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from ..config import Config
from .context import Context
from .diversity import diversity
from .fastv import fastv
from .random import random
from .sharp import sharp
from .uniform import uniform

Score = Callable[[Context], Tensor]

__all__ = ["Context", "Score", "score_function"]


def score_function(config: Config) -> Score:
    """The rule that `config` asks for, its options bound."""
    if callable(config.selector):
        return config.selector
    rules: dict[str, Score] = {
        "sharp": functools.partial(sharp, debias=config.debias),
        "fastv": fastv,
        "uniform": uniform,
        "random": functools.partial(random, seed=config.seed),
        "diversity": diversity,
    }
    return rules[config.selector]

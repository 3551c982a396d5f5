"""The selection rules, one a file: each scores the tokens of a layer.

A rule is plain PyTorch and knows nothing of graphs; `passes.select` traces it into one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..calibration import Calibration
from ..config import Config
from .context import Context
from .diversity import diversity
from .fastv import fastv
from .random import random
from .sharp import sharp
from .uniform import uniform

Score = Callable[..., Tensor]
"""``(Context, *constants) -> [B, S]``, where the constants are those of the `Rule`."""

__all__ = ["Context", "Rule", "Score", "rule"]


@dataclass(frozen=True)
class Rule:
    """A scoring function, and the tensors that it is called with beside the context.

    ``needs_attention`` says that it looks at the context's queries, keys or mask.
    """

    score: Score
    constants: tuple[Tensor, ...] = ()
    needs_attention: bool = True


def rule(config: Config) -> Rule:
    """The rule that `config` asks for, its options bound."""
    if callable(config.selector):
        return Rule(config.selector)
    if config.selector == "sharp":
        profile = None if config.debias is None else config.debias.profile
        constants = profile.table() if isinstance(profile, Calibration) else ()
        parts = functools.partial(sharp, segment=config.segment, debias=config.debias, dedup=config.dedup)
        return Rule(parts, constants)
    rules = {
        "fastv": Rule(fastv),
        "uniform": Rule(uniform, needs_attention=False),
        "random": Rule(functools.partial(random, seed=config.seed), needs_attention=False),
        "diversity": Rule(diversity, needs_attention=False),
    }
    return rules[config.selector]

"""The selection rules, one a file: each scores the tokens of a layer.

A rule is plain PyTorch and knows nothing of graphs; `passes.rewrite.selection` traces it into one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..calibration import Calibration
from ..options import Config
from .context import Context
from .diversity import diversity
from .fastv import fastv
from .feather import feather
from .framefusion import framefusion
from .pyramiddrop import pyramiddrop
from .random import random
from .sharp import sharp
from .sharp.segments import own_segments
from .sparsevlm import sparsevlm
from .uniform import uniform
from .visiondrop import visiondrop

Score = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""``(Context, *constants) -> [B, S]``, where the constants are those of the `Rule`; or a pair, see `Context`."""

__all__ = ["Context", "Rule", "Score", "rule"]


@dataclass(frozen=True)
class Rule:
    """A scoring function, and the tensors that it is called with beside the context.

    ``needs_attention`` says that it looks at the context's queries, keys or mask, ``merges`` that it returns a pair;
    None where only a call can tell. ``segments`` gives the segments ``[B, S]`` that it scores by, for reports; None
    where it knows none.
    """

    score: Score
    constants: tuple[Tensor, ...] = ()
    needs_attention: bool = True
    merges: bool | None = False
    segments: Callable[[Context], Tensor] | None = None


def rule(config: Config) -> Rule:
    """The rule that `config` asks for, its options bound."""
    if callable(config.selector):
        return Rule(config.selector, merges=None)
    if config.selector == "sharp":
        profile = None if config.debias is None else config.debias.profile
        constants = profile.table() if isinstance(profile, Calibration) else ()
        parts = functools.partial(sharp, segment=config.segment, debias=config.debias, dedup=config.dedup)
        if config.segment is None or config.segment.scope != "scores":
            return Rule(parts, constants)
        return Rule(parts, constants, segments=functools.partial(own_segments, segment=config.segment))
    rules = {
        "fastv": Rule(fastv),
        "pyramiddrop": Rule(pyramiddrop),
        "feather": Rule(feather),
        "sparsevlm": Rule(sparsevlm),
        "visiondrop": Rule(visiondrop),
        "uniform": Rule(uniform, needs_attention=False),
        "random": Rule(functools.partial(random, seed=config.seed), needs_attention=False),
        "diversity": Rule(diversity, needs_attention=False),
        "framefusion": Rule(framefusion, merges=True),
    }
    return rules[config.selector]

"""The selection rules, one a file: each scores the tokens of a layer, and registers itself by its name.

A rule is plain PyTorch and knows nothing of graphs; ``passes.rewrite.selection`` traces it into one.
"""

from ..selector_registry import Rule, Score
from . import diversity, fastv, feather, framefusion, pyramiddrop, random, sharp, sparsevlm, uniform, visiondrop
from .context import Context

__all__ = [
    "Context",
    "Rule",
    "Score",
    "diversity",
    "fastv",
    "feather",
    "framefusion",
    "pyramiddrop",
    "random",
    "sharp",
    "sparsevlm",
    "uniform",
    "visiondrop",
]

"""Functions of a model that mix tokens in their order, whatever their number.

A causal convolution, a gated delta rule, a state space scan: each is written for a chunk size or a length, and
traced node by node it could not be run on fewer tokens. A graph that holds one call of the whole function can:
the function itself computes the same mixing for any number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SEQUENCE_FUNCTIONS: set[Callable[..., Any]] = set()
"""Functions of tokens, in one axis, that may be called with any number of them (`integrations` fills it)."""

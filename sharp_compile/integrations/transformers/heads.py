"""Which modules of transformers put a head on the hidden states of a decoder."""

from __future__ import annotations

import sys
from typing import Any


def hands_states_on(module: Any) -> bool:
    """Whether a module is a model of transformers without a head, which returns its decoder's states as they are."""
    if "transformers" not in sys.modules:
        return False
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel) and module.base_model is module

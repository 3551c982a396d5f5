"""Lets the decoder of DeepStack models of transformers be one graph.

Their decoder adds visual features to the hidden states after several layers (DeepStack, arXiv 2406.04334), by

    hidden[visual] = hidden[visual] + features

where the number of visual tokens depends on data: Dynamo breaks the graph there, layer by layer. The same sum
with shapes that are known is

    hidden + zeros.masked_scatter(visual, features)

and it also leaves the features beside the hidden states, where a pass can gather them with the tokens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import patches
from ..tracing import traces_for_sharp

_NAME = "_deepstack_process"
_PARAMETERS = ["self", "hidden_states", "visual_pos_masks", "visual_embeds"]


def make_traceable(model_class: type) -> bool:
    """Replace that method of a class, in what is traced for this backend.

    Returns:
        Whether the class has it, and had not been changed yet.
    """
    method = vars(model_class).get(_NAME)
    if method is None or hasattr(method, "__wrapped__") or list(inspect.signature(method).parameters) != _PARAMETERS:
        return False
    if not _adds_features(method):
        return False
    patches.replace(
        model_class,
        _NAME,
        _traceable,
        versions=patches.TRANSFORMERS,
        why="Dynamo would cut the decoder into a graph for each layer, none of which can be pruned",
        acts="what is traced for this backend",
    )
    return True


def _traceable(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def process(self: Any, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        if not (torch.compiler.is_dynamo_compiling() and traces_for_sharp()):
            return method(self, hidden_states, visual_pos_masks, visual_embeds)
        mask = visual_pos_masks.to(hidden_states.device).unsqueeze(-1)
        features = visual_embeds.to(hidden_states.device, hidden_states.dtype)
        return hidden_states + features.new_zeros(hidden_states.shape).masked_scatter(mask, features)

    return process


def _adds_features(method: Callable[..., Tensor]) -> bool:
    """Return whether a method does what is described above: seen on a small example."""
    hidden, features = torch.arange(24.0).view(2, 3, 4), torch.arange(12.0).view(3, 4) + 0.5
    mask = torch.tensor([[True, False, True], [False, False, True]])
    expected = hidden.clone()
    expected[mask] += features
    try:
        return torch.equal(method(None, hidden.clone(), mask, features), expected)
    except Exception:  # a method of this name that wants more than that is another one
        return False

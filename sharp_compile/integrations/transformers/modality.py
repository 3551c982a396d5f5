"""Tells pictures from sound by the ids of their placeholders, which the configs of transformers name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...passes.fx.nodes import example_tensor
from .calls import calls_under_way

_IDS = {
    "visual": ("image_token_id", "image_token_index", "video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
}
_TOWERS = {"visual": "vision_config", "audio": "audio_config"}
_SOUND = ("input_features", "audio_values", "input_values")
_THROUGH = {"to", "unsqueeze", "expand", "expand_as", "bool", "contiguous", torch.unsqueeze}
_MAX_STEPS = 16


def placeholder_ids(config: Any, modality: str) -> list[int]:
    """Return the ids that stand for features of a modality (``"all"`` for any) in a prompt, by a model's config.

    Phi-4-multimodal's has them in the configs of its towers.
    """
    kinds = [kind for kind in _IDS if modality in (kind, "all")]
    places = [(place, kind) for kind in kinds for place in (config, getattr(config, _TOWERS[kind], None))]
    ids = (getattr(place, name, None) for place, kind in places for name in _IDS[kind])
    return sorted({each for each in ids if isinstance(each, int)})


def kind_of_mask(mask: Node) -> str | None:
    """Return whose features the model that is being called puts where a mask is: ``"visual"`` or ``"audio"``.

    ``"unknown"`` where it is called with sound and the mask does not show it; None for all other models.
    """
    for model, given in calls_under_way():
        known = {kind: placeholder_ids(getattr(model, "config", None), kind) for kind in _IDS}
        if known["audio"]:
            marked = _marked_ids(mask, given.get("input_ids"))
            kinds = [kind for kind, ids in known.items() if marked and marked <= set(ids)]
            if kinds:
                return kinds[0]
            if any(isinstance(given.get(name), Tensor) for name in _SOUND):
                return "unknown"
    return None


def _marked_ids(mask: Node, ids: Any) -> set[int]:
    """Return the ids at which a mask is; none where that isn't known."""
    for _ in range(_MAX_STEPS):
        if mask.target not in _THROUGH:
            break
        mask = mask.all_input_nodes[0]
    if mask.op == "placeholder":
        return _ids_at(mask, ids)
    compared = mask.args[1] if len(mask.args) == 2 else None
    is_equality = str(getattr(mask.target, "__name__", mask.target)) == "eq"
    return {compared} if is_equality and isinstance(compared, int) else set()


def _ids_at(mask: Node, ids: Any) -> set[int]:
    """Return the ids of the prompt where a mask is that came in: Dynamo has the tensor while it compiles."""
    given = getattr(mask.meta.get("grapharg"), "example", None)
    value = example_tensor(mask)
    if not isinstance(given, Tensor) or not isinstance(ids, Tensor) or value is None or value.dtype != torch.bool:
        return set()
    if given.ndim not in (2, 3) or ids.shape != given.shape[:2]:
        return set()
    rows = given if given.ndim == 2 else given.any(-1)
    return set(ids[rows.to(ids.device)].unique().tolist())

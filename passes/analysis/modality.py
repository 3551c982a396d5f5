"""Tells pictures from sound among injected features, and leaves out of an injection what is not to be pruned.

What the features are computed from shows it: pictures have several channels and two axes of space, and go through
convolutions of two or three axes; sound goes through convolutions along time alone. Where the encoder is in another
graph nothing shows it, and who compiles may know.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.fx import Node

from ..errors import CannotPrune
from ..fx.nodes import ancestors, arguments, example_tensor
from .injection import Injection
from .origins import is_data

_ALONG_TIME = {torch.conv1d, F.conv1d}
_IN_SPACE = {torch.conv2d, F.conv2d, torch.conv3d, F.conv3d}

KIND = "modality"
"""The name by which a node of features has its modality in its ``meta``."""


def modality_of(features: Node) -> str | None:
    """Return what features are computed from: ``"visual"`` or ``"audio"``, None where the graph does not show it."""
    nodes = ancestors(features)
    if any(_is_picture(node) for node in nodes):
        return "visual"
    return "audio" if any(node.target in _ALONG_TIME for node in nodes) else None


def only(injection: Injection, modality: str) -> Injection | None:
    """Return the injection of features of one modality alone; None where it has none of these.

    Features are those of pictures unless they are known to be others (``meta["modality"]``, which is ``"unknown"``
    where they may well be).

    Raises:
        CannotPrune: where it can't be told whether features are of that modality.
    """
    if modality == "all":
        return injection
    kinds = [features.meta.get(KIND) or "visual" for features in injection.features]
    if "unknown" in kinds:
        raise CannotPrune(
            "visual and audio features come in one prompt, and nothing shows which of them are injected here; "
            'prune all of them with modality="all", or say which are to be with sharp_compile.visual_tokens(is_visual)'
        )
    chosen = [place for place, kind in enumerate(kinds) if kind == modality]
    if not chosen and injection.frame is None:
        return None
    masks, features = injection.masks, injection.features
    return replace(
        injection, masks=tuple(masks[place] for place in chosen), features=tuple(features[place] for place in chosen)
    )


def _is_picture(node: Node) -> bool:
    """Return whether pixels ``[..., channels, height, width]`` come in by a node, or go through it."""
    if node.target in _IN_SPACE:
        node = arguments(node)[0]
    elif node.op != "placeholder" or not is_data(node):
        return False
    value = example_tensor(node)
    # A spectrogram has one channel, as has a mask.
    return value is not None and value.ndim in (4, 5) and value.shape[1 if node.op != "placeholder" else -3] != 1

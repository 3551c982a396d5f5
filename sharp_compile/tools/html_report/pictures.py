"""Images for the page, as ``data:`` addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .cells import frame_count

WIDEST = 320
"""Pixels: a page shows many frames, and none of them large."""

VEIL = (12, 14, 20, 190)
"""The colour that dims a dropped cell, with its opacity."""

SCALE = ("#2b1055", "#7b2d8b", "#d1495b", "#f79a3e", "#fcf5bf")
"""The colours of the heat map, from the lowest score to the highest: ever lighter, also for the colour-blind."""


def frames_in(inputs: Mapping[str, Any], row: int, rows: int) -> np.ndarray | None:
    """The frames of one of `rows` prompts among a model's inputs, `[T, H, W, 3]` uint8, stretched to all of 0..255.

    None where the inputs have no frames, but patches.
    """
    pixels = inputs.get("pixel_values_videos")
    if pixels is None:
        pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or (count := frame_count(pixels, rows)) is None or pixels.shape[-3] != 3:
        return None
    own = pixels.reshape(rows, count, *pixels.shape[-3:])[row].detach().float().cpu()
    low, high = own.min(), own.max()
    shown = (own - low) / (high - low).clamp_min(1e-6) * 255
    return shown.nan_to_num(0).permute(0, 2, 3, 1).round().byte().numpy()


def photo(frame: np.ndarray) -> str:
    """Return the address of a frame ``[H, W, 3]`` uint8, made small."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((WIDEST, WIDEST * 4))
    return _address(image, "JPEG", quality=80)


def heat(tokens: np.ndarray, order: np.ndarray) -> str:
    """Return the address of a tile's heat map, a pixel a cell, by the rank of the token's score.

    Args:
        tokens: ``[rows, columns]`` int64, as in a ``Tile``.
        order: ``[V]`` int64, the rank of each token, 0 for the highest score.
    """
    anchors = np.array([[*bytes.fromhex(colour[1:])] for colour in SCALE])
    height = 1 - order[tokens] / max(len(order) - 1, 1)
    at = np.linspace(0, 1, len(SCALE))
    colours = np.stack([np.interp(height, at, anchor) for anchor in anchors.T], axis=-1).round()
    opaque = np.concatenate([colours, np.full((*tokens.shape, 1), 255)], axis=-1)
    cells = np.where(tokens[..., None] >= 0, opaque, 0).astype(np.uint8)
    return _address(Image.fromarray(cells), "PNG", optimize=True)


def veil(tokens: np.ndarray, kept: np.ndarray) -> str:
    """Return the address of what dims a tile's dropped cells: a pixel a cell, transparent where the token is kept."""
    cells = np.zeros((*tokens.shape, 4), np.uint8)
    cells[~kept[tokens] | (tokens < 0)] = VEIL
    return _address(Image.fromarray(cells), "PNG", optimize=True)


def _address(image: Image.Image, kind: str, **how: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"

"""Draw the frames as the decoder sees them after the cut: the cells of dropped tokens are dimmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH = 1920
ACROSS = 4
"""The width of the picture in pixels, and how many frames stand side by side."""

MARGIN, GAP, TITLE, SUBTITLE = 36, 8, 34, 22
PAPER, INK, FAINT, EDGE = (16, 19, 26), (238, 240, 244), (150, 158, 172), (255, 214, 92)
DIMMED = 0.30
"""How much of its brightness a dropped cell keeps."""


@dataclass(frozen=True)
class Section:
    """One model's part of the picture.

    ``frames`` is ``[T, H, W, 3]``, uint8; ``kept``, ``[T, rows, columns]``, says which cells of each are kept.
    """

    title: str
    subtitle: str
    frames: np.ndarray
    kept: np.ndarray


def page(sections: Sequence[Section]) -> Image.Image:
    """Draw all sections below each other, each under its title, with its frames in rows."""
    inner = WIDTH - 2 * MARGIN
    tile = (inner - (ACROSS - 1) * GAP) // ACROSS
    heading = TITLE + SUBTITLE + 3 * GAP
    heights = [round(tile * section.frames.shape[1] / section.frames.shape[2]) for section in sections]
    rows = [-(-len(section.frames) // ACROSS) for section in sections]
    extents = [heading + count * (height + GAP) for count, height in zip(rows, heights, strict=True)]
    image = Image.new("RGB", (WIDTH, sum(extents) + (len(sections) + 1) * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    top = MARGIN
    for section, height, extent in zip(sections, heights, extents, strict=True):
        draw.text((MARGIN, top), section.title, INK, ImageFont.load_default(TITLE))
        draw.text((MARGIN, top + TITLE + GAP), section.subtitle, FAINT, ImageFont.load_default(SUBTITLE))
        for number, (frame, kept) in enumerate(zip(section.frames, section.kept, strict=True)):
            row, column = divmod(number, ACROSS)
            corner = (MARGIN + column * (tile + GAP), top + heading + row * (height + GAP))
            image.paste(panel(frame, kept, (tile, height)), corner)
        top += extent + MARGIN
    return image


def panel(frame: np.ndarray, kept: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw one frame, ``[H, W, 3]``, at a width and height in pixels, its kept cells bright and outlined.

    Args:
        frame: uint8.
        kept: ``[rows, columns]``, bool. The cells divide the whole frame evenly.
        size: Width and height of the result.
    """
    width, height = size
    rows, columns = kept.shape
    colours = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    bright = kept[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
    # Half-way to grey as well, so that a dark place in a kept cell still differs from a dropped one.
    dimmed = DIMMED * (colours + colours.mean(axis=-1, keepdims=True)) / 2
    drawn = np.where(bright[..., None], colours, dimmed)
    framed = np.pad(bright, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    drawn[bright & ~inside] = EDGE
    return Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))

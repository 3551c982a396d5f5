"""Draw the frames as the decoder sees them after the cut: the cells of dropped tokens are dimmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1920, 1080
"""The most that the picture takes, in pixels: a screen."""

MARGIN, GAP, TITLE, SUBTITLE = 20, 6, 24, 18
PAPER, INK, FAINT, EDGE = (16, 19, 26), (238, 240, 244), (150, 158, 172), (255, 214, 92)
DIMMED = 0.30
"""How much of its brightness a dropped cell keeps."""

_HEADING = TITLE + SUBTITLE + 3 * GAP


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
    """Draw all sections below each other, each under its title, with its frames in rows.

    Each gets an equal share of the height, and fills it with frames that are as large as fit.
    """
    share = (HEIGHT - MARGIN) // len(sections) - MARGIN - _HEADING
    tiles = [_tile_size(section.frames.shape, share) for section in sections]
    across = [(WIDTH - 2 * MARGIN + GAP) // (width + GAP) for width, _ in tiles]
    rows = [-(-len(section.frames) // count) for section, count in zip(sections, across, strict=True)]
    extents = [_HEADING + count * (height + GAP) for count, (_, height) in zip(rows, tiles, strict=True)]
    image = Image.new("RGB", (WIDTH, sum(extents) + (len(sections) + 1) * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    top = MARGIN
    for section, (width, height), count, extent in zip(sections, tiles, across, extents, strict=True):
        draw.text((MARGIN, top), section.title, INK, ImageFont.load_default(TITLE))
        draw.text((MARGIN, top + TITLE + GAP), section.subtitle, FAINT, ImageFont.load_default(SUBTITLE))
        for number, (frame, kept) in enumerate(zip(section.frames, section.kept, strict=True)):
            row, column = divmod(number, count)
            corner = (MARGIN + column * (width + GAP), top + _HEADING + row * (height + GAP))
            image.paste(panel(frame, kept, (width, height)), corner)
        top += extent + MARGIN
    return image


def _tile_size(shape: tuple[int, ...], share: int) -> tuple[int, int]:
    """Return the width and height of the largest frames of ``[T, H, W, 3]`` that fit into a part of the page."""
    count, height, width, _ = shape
    inner = WIDTH - 2 * MARGIN
    best = 1.0
    for rows in range(1, count + 1):
        across = -(-count // rows)
        best = max(best, min((inner + GAP) / across - GAP, (share / rows - GAP) * width / height))
    return int(best), max(1, int(best * height / width))


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

"""Finds out which visual tokens belong to one frame.

Three things in a graph can show it, and all that do are used:

* text between visual tokens (a separator, a timestamp) ends a frame;
* features that are injected as ``[F, P, C]`` are F frames of P tokens; so are features computed from F pictures
  ``[..., F, channels, height, width]``, if their number is F * P, or one more for each video;
* positions of several axes ``[time, height, width]`` (M-RoPE, arXiv 2409.12191, section 2.1): a new frame begins
  where the time changes or the height goes back.

Where none of them does, the visual tokens between two pieces of text are one frame, unless the option
``segment`` says how many tokens a frame has; that then counts alone, beside text.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Node

from ...kernels.shift import shifted
from ..fx.emit import Emitter
from ..fx.nodes import ancestors, example_tensor
from ..fx.sizes import expression
from .injection import Injection, visual_mask
from .rope import RopeSubgraph


@dataclass(frozen=True)
class Pictures:
    """Features of one injection, which are pictures of ``tokens`` tokens each.

    ``per_video`` are the pictures of a video, which one more token closes; None where nothing does.
    """

    tokens: int | Node
    per_video: int | Node | None = None


@dataclass(frozen=True)
class Frames:
    """What a graph shows of its frames.

    ``pictures`` belong to the injection's features, None where nothing is known of them. ``positions`` is the
    node ``[3, B, S]`` of the positions in time, height and width. ``said`` are the tokens of a frame that the
    user told.
    """

    pictures: tuple[Pictures | None, ...]
    positions: Node | None
    said: int | None


def find_frames(injection: Injection, rope: RopeSubgraph | None, said: int | None, emit: Emitter) -> Frames:
    """Look for frames; finding none is no reason to decline.

    Args:
        injection: the visual features.
        rope: that of a decoder layer, None where the graph has no decoder.
        said: how many tokens a frame has, if the user told.
        emit: for sizes that are symbolic.
    """
    if said is not None:
        return Frames((), None, said)
    rows, length, _ = injection.embeddings.meta["example_value"].shape
    pictures = tuple(_pictures(features, injection.embeddings, emit) for features in injection.features)
    return Frames(pictures, None if rope is None else _positions(rope, rows, length), None)


def emit_frames(emit: Emitter, frames: Frames, injection: Injection, is_visual: Node) -> Node:
    """Add the nodes that number the frames of each row.

    Returns:
        The node ``[B, S]`` int64, -1 where a token is not visual.
    """
    arguments: list[Any] = []
    for mask, pictures in zip(injection.masks, frames.pictures, strict=False):
        if pictures is not None:
            arguments += [mask, pictures.tokens, pictures.per_video]
    return emit(_number, is_visual, injection.frame, frames.positions, frames.said, *arguments)


def _number(
    is_visual: Tensor, earlier: Tensor | None, positions: Tensor | None, said: int | None, *pictures: Any
) -> Tensor:
    place = torch.arange(is_visual.shape[1], device=is_visual.device)
    starts = is_visual & ~shifted(is_visual, 1, False)
    if earlier is not None:
        starts = starts | (is_visual & (earlier != shifted(earlier, 1, -1)))
    if positions is not None:
        time, height = positions[0], positions[1]
        # Tokens that only count up, on every axis, are no pictures.
        back = (height < shifted(height, 1, 0)) | ((height == shifted(height, 1, 0)) & (time != shifted(time, 1, 0)))
        starts = starts | (is_visual & back)
    for mask, tokens, per_video in zip(pictures[::3], pictures[1::3], pictures[2::3], strict=True):
        mask = visual_mask(mask)
        number = mask.flatten().cumsum(0).view_as(mask) - 1
        first = mask
        if per_video is not None:
            number = number % (per_video * tokens + 1)
            first = mask & (number < per_video * tokens)
        starts = starts | (first & (number % tokens == 0))
    if said is not None:
        run = place.where(starts, -1).cummax(1).values
        starts = is_visual & ((place - run) % said == 0)
    return (starts.cumsum(1) - 1).where(is_visual, -1)


def _pictures(features: Node, embeddings: Node, emit: Emitter) -> Pictures | None:
    """Return what is known of features that are injected into ``embeddings``."""
    rows, _, channels = embeddings.meta["example_value"].shape
    value = example_tensor(features)
    if value is None:
        return None
    is_pictures = value.ndim == 3 and expression(value.shape[2]) == expression(channels)
    # As many pictures as rows may be whole videos.
    if is_pictures and expression(value.shape[0]) != expression(rows):
        return Pictures(emit.size(features, 1))
    pixels = [node for node in ancestors(features) if node.op == "placeholder" and _may_be_pixels(node)]
    if len(pixels) != 1:
        return None
    sizes = pixels[0].meta["example_value"].shape[:-3]
    tokens = expression(value.numel()) / expression(channels)
    count = sympy.prod(expression(size) for size in sizes)
    closing = [expression(sizes[0])] if len(sizes) == 2 else []
    for closed in (0, *closing):
        # A whole number of tokens for each picture, whatever the lengths are: no picture is left in the divisor.
        each = sympy.cancel((tokens - closed) / count)
        if sympy.fraction(sympy.together(each))[1] == 1 and each != 1:
            pictures = _product(emit, pixels[0], range(len(sizes)))
            elements = _product(emit, features, range(value.ndim))
            total = emit.arithmetic(operator.floordiv, elements, emit.size(embeddings, 2))
            # What closes the videos is less than a token for each picture, and so left out.
            per_video = emit.size(pixels[0], 1) if closed else None
            return Pictures(emit.arithmetic(operator.floordiv, total, pictures), per_video)
    return None


def _product(emit: Emitter, node: Node, axes: Iterable[int]) -> int | Node:
    """Return the product of some sizes of a tensor."""
    return functools.reduce(functools.partial(emit.arithmetic, operator.mul), (emit.size(node, axis) for axis in axes))


def _positions(rope: RopeSubgraph, rows: Any, length: Any) -> Node | None:
    """Return the last integers ``[3, B, S]`` that the rotary tables are computed from."""
    found = [
        node
        for node in ancestors(*(parent for node in rope.nodes for parent in node.all_input_nodes))
        if (value := example_tensor(node)) is not None
        and value.dtype in (torch.int64, torch.int32)
        and value.ndim == 3
        and [expression(size) for size in value.shape] == [3, expression(rows), expression(length)]
    ]
    return found[-1] if found else None


def _may_be_pixels(node: Node) -> bool:
    value = example_tensor(node)
    if value is None or isinstance(value, torch.nn.Parameter):
        return False
    return value.is_floating_point() and value.ndim in (4, 5)

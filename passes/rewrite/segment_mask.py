"""Lets the segment mask of ShaRP steer the forward pass of the layers that see the whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.fx import Node

from ...kernels.segment_attention import inside
from ...selectors.sharp.segments import segments
from ...sharp_options import Segment
from ..analysis.attention import Attention, as_rewritten, as_sdpa
from ..analysis.attention_mask import MaskFormula
from ..analysis.decoder import Decoder, find_layer_input
from ..fx.emit import Emitter


def emit_segment_mask(emit: Emitter, decoder: Decoder, layer: int, frame: Node, segment: Segment) -> Node:
    """Rewrite the attentions of layers ``0..layer``, so that visual tokens see text and their own segment only.

    Args:
        emit: adds traced functions to the graph.
        decoder: the layers; those that are rewritten were looked at by ``check_maskable``.
        layer: the last layer to rewrite.
        frame: ``[B, S]`` int64, in front of ``first_masked``.
        segment: what a segment is.

    Returns:
        The node ``[B, S]`` int64 of the segments, -1 where a token is not visual.
    """
    own = None
    masks: dict[Node, Node] = {}
    for attention in decoder.layers[: layer + 1]:
        assert attention is not None and attention.masked is not None
        with emit.before(attention.masked):
            if own is None:
                own = emit(_segments(segment), frame, find_layer_input(decoder, 0))
            if attention.mask is None:
                _run_in_segments(attention, own)
                continue
            if attention.mask not in masks:
                masks[attention.mask] = emit(_also_inside, attention.mask, own)
            attention.masked.replace_input_with(attention.mask, masks[attention.mask])
    assert own is not None
    return own


def steered_formulas(
    decoder: Decoder, layer: int, formulas: Mapping[Node, MaskFormula], own: Node
) -> dict[Node, MaskFormula]:
    """Return the formulas of the masks that ``emit_segment_mask`` made, of those whose own mask had one."""
    found = {}
    for attention in decoder.layers[: layer + 1]:
        if attention is not None and attention.mask is not None and attention.mask in formulas:
            mask = as_rewritten(attention.output.graph, attention).mask
            assert mask is not None
            found[mask] = formulas[attention.mask].inside(own)
    return found


def _segments(segment: Segment) -> Callable[[Tensor, Tensor], Tensor]:
    def of_frames(frame: Tensor, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return segments(frame, hidden, segment)

    return of_frames


def _run_in_segments(attention: Attention, own: Node) -> None:
    node = attention.output
    given = as_sdpa(node)
    assert given is not None
    node.target = torch.ops.sharp_compile.segment_attention.default
    node.args, node.kwargs = (given["query"], given["key"], given["value"], own, given.get("scale")), {}


def _also_inside(mask: Tensor, segment: Tensor) -> Tensor:
    visible = inside(segment, segment)[:, None]
    return mask & visible if mask.dtype == torch.bool else mask.masked_fill(~visible, torch.finfo(mask.dtype).min)

"""Decides after which decoder layers the sequence is cut: where it was asked for, or at the next that serves."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from ...options import Cut
from ..errors import CannotPrune
from ..fx.nodes import arguments, example_tensor, is_hidden_states
from .attention import Attention
from .attention_mask import MaskFormula
from .decoder import Decoder, find_layer_input
from .injection import is_masked_scatter
from .rope import RopeSubgraph


@dataclass(frozen=True)
class CutSite:
    """Where one cut is made, and what its tokens are scored by.

    Attributes:
        cut: the cut, with the layer that it is made after.
        hidden: what enters that layer, ``[B, S, C]``.
        after: what the layer hands on, ``[B, S, C]``: the cut itself.
        attention: the layer's, with the keys of its S tokens; None where the rule needs none.
        rope: that of these keys; None without attention.
        share_heads: whether processes share the heads of the layer.
        formula: what its mask was made from; None where that is not known, or there is none.
    """

    cut: Cut
    hidden: Node
    after: Node
    attention: Attention | None = None
    rope: RopeSubgraph | None = None
    share_heads: bool = False
    formula: MaskFormula | None = None


def find_cut_sites(decoder: Decoder, asked: Sequence[Cut], needs_attention: bool) -> tuple[list[CutSite], str]:
    """Return the sites of the cuts that the user asked for, and a remark on those that moved ("" if none did).

    A cut moves after the last layer after which visual features are added to the hidden states again (DeepStack,
    arXiv 2406.04334), to the first layer that has attention (its cache tells later calls how many positions there
    were), and to the next one that has if the selection rule needs it.

    Raises:
        CannotPrune: where no layer is left after a cut, or two cuts meet.
    """
    again = _last_injection(decoder)
    sites: list[CutSite] = []
    remarks: list[str] = []
    for cut in asked:
        layer = cut.layer
        if layer + 1 < len(decoder.layers) and again is not None and layer < again:
            layer = again
            remarks.append(f"layer={cut.layer} moved to {layer}, the last after which visual features are added again")
        if layer + 1 < len(decoder.layers):
            first = decoder.attention_from(layer if needs_attention else 0)
            if first is None:
                raise CannotPrune(
                    f"no decoder layer from layer={cut.layer} on has attention, by which to score the tokens"
                )
            if layer < first:
                remarks.append(f"layer={cut.layer} moved to {first}, the next that has attention")
                layer = first
        if layer + 1 >= len(decoder.layers):
            moved = "" if layer == cut.layer else f" ({remarks[-1]})"
            raise CannotPrune(
                f"layer={cut.layer}{moved} leaves no later layer to shorten: the decoder layers in this graph are "
                f"{len(decoder.layers)}. If the model has more, Dynamo cuts it into several graphs and has to be kept "
                "from that (TORCH_LOGS=graph_breaks shows where); else choose a lower layer"
            )
        if sites and sites[-1].cut.layer >= layer:
            raise CannotPrune(f"the stages at layers {sites[-1].cut.layer} and {cut.layer} meet: {'; '.join(remarks)}")
        attention = decoder.layers[layer] if needs_attention else None
        hidden, after = (find_layer_input(decoder, each) for each in (layer, layer + 1))
        sites.append(CutSite(replace(cut, layer=layer), hidden, after, attention))
    return sites, "; ".join(remarks)


def _last_injection(decoder: Decoder) -> int | None:
    """Return the last layer after which features are put into the hidden states by a mask; None where there is none."""
    firsts = [decoder.first_index(layer) for layer in range(len(decoder.layers))]
    found = [decoder.order[node] for node in decoder.dataflow if _injects(node, decoder.dataflow)]
    layers = [sum(first < place for first in firsts) - 1 for place in found]
    return max((layer for layer in layers if layer >= 0), default=None)


def _injects(node: Node, dataflow: Container[Node]) -> bool:
    """Return whether hidden states are ``node``'s result that features were put into or added to by a mask."""
    if not is_hidden_states(node):
        return False
    if node.target is torch.ops.aten.index_put.default:
        index = example_tensor(arguments(node)[1][0])
        return index is not None and index.dtype == torch.bool and index.ndim == 2
    added = (parent for parent in node.all_input_nodes if parent not in dataflow)
    return is_masked_scatter(node) or any(is_masked_scatter(parent) and is_hidden_states(parent) for parent in added)

"""Proves that the cut is all that a decoder hands on, for selectors that merge tokens.

A mean of tokens is right for the hidden states as they leave a layer, and for nothing else. That the cut holds
them, all of them and only them, is read off the flow of data:

* nothing is computed from the cut before the next layer begins. So the cut is what enters that layer, not a sum in the
  middle of the layer before, with more of it on its way (an output and a residual that are not yet added);
* what later layers read beside the cut, of the data that descends from the embeddings, descends from no layer
  up to the cut, nor does it look like hidden states. So there is no second stream (hyper-connections,
  connections past several layers, keys and values that later layers share). What is left are side inputs that each
  layer gets of its own, such as per-layer embeddings.
"""

from __future__ import annotations

import networkx as nx
from torch.fx import Node

from ..errors import CannotPrune
from ..fx.nodes import example_tensor, example_value, format_node
from ..fx.sizes import expression
from .cut_sites import CutSite
from .decoder import Decoder


def check_single_stream(decoder: Decoder, site: CutSite, selector: str) -> None:
    """Decline where tokens can't be proven to be merged by the mean of them at the cut.

    Args:
        decoder: the decoder.
        site: the cut.
        selector: what merges, for the reason.

    Raises:
        CannotPrune: where the cut is not, or may not be, the one residual stream.
    """
    dataflow, layer = decoder.dataflow, site.cut.layer
    downstream = nx.descendants(dataflow, site.after)
    first_index = decoder.first_index(layer + 1)
    early = min(downstream, key=decoder.order.__getitem__)
    if decoder.order[early] < first_index:
        raise CannotPrune(
            f"{selector} merges tokens, but what leaves decoder layer {layer} is not known to be one tensor [B, S, C]: "
            f"{format_node(early)} comes between the last one that all goes through and layer {layer + 1}, as where "
            "there are several streams, or an output and its residual are added later; choose a selector that only "
            "drops tokens"
        )
    before = {node for inside in decoder.inside[: layer + 1] for node in inside}
    for node in sorted(dataflow, key=decoder.order.__getitem__):
        if not before.isdisjoint(dataflow.predecessors(node)):
            before.add(node)
    channels = expression(example_value(decoder.embeddings).shape[2])
    beside = {parent for node in downstream for parent in dataflow.predecessors(node)} - downstream - {site.after}
    for node in sorted(beside, key=decoder.order.__getitem__):
        if node in before or _may_be_states(node, channels):
            raise CannotPrune(
                f"{selector} merges tokens, but more than one stream of hidden states goes from decoder layer {layer} "
                f"to the later ones: these also read {format_node(node)}; choose a selector that only drops tokens"
            )


def _may_be_states(node: Node, channels: object) -> bool:
    value = example_tensor(node)
    if value is None:
        return True
    return value.is_floating_point() and value.ndim > 0 and expression(value.shape[-1]) == channels

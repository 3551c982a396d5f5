"""Tells whether the attentions of a decoder can be given another mask."""

from __future__ import annotations

from torch.fx import Node

from ..errors import CannotPrune
from ..fx.nodes import example_tensor
from ..fx.sizes import expression
from .attention import as_sdpa
from .best_keys import all_keys
from .decoder import Decoder


def first_masked(decoder: Decoder) -> Node:
    """Return the first node that the mask changes: all that the mask is made of stands in front of it."""
    return next(layer.masked for layer in decoder.layers if layer is not None and layer.masked is not None)


def check_maskable(decoder: Decoder, layer: int) -> None:
    """Decline where the attentions of layers ``0..layer`` can't be given a segment mask."""
    for index, attention in enumerate(decoder.layers[: layer + 1]):
        if attention is None:
            raise CannotPrune(f"layer {index} can't be given a segment mask: it has no attention")
        query, key = example_tensor(attention.query), example_tensor(attention.key)
        if query is None or key is None or expression(query.shape[-2]) != expression(key.shape[-2]):
            raise CannotPrune(f"layer {index} can't be given a segment mask: its queries are not as many as its keys")
        given = as_sdpa(attention.output) if attention.mask is None else {}
        if given is None:
            raise CannotPrune(
                f"layer {index} can't be given a segment mask: it has no attention that is one operator of PyTorch's"
            )
        if attention.mask is not None and all_keys(attention.mask) is not attention.mask:
            raise CannotPrune(
                f"layer {index} can't be given a segment mask: each of its queries sees its best keys only, which may "
                "all be in other segments"
            )
        if given.get("dropout_p"):
            raise CannotPrune(f"layer {index} can't be given a segment mask: its attention has dropout; call eval()")

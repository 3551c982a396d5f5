"""What a selection rule may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.attention_rows import attention_rows, to_bool_mask
from ..kernels.sinks import sinks_as_key


@dataclass(frozen=True)
class Context:
    """The state of the scoring layer, before any token is dropped.

    A rule is a function ``score(ctx) -> Tensor[B, S]`` in plain PyTorch: higher is more important. It is
    traced into the graph, so it must not branch on the values of tensors. Only the scores of visual tokens
    are read: text is always kept, and padding is never scored. A rule that says that it needs no attention
    may be asked at a layer that has none: there is then nothing in ``query``, the keys and ``mask``.

    A rule may also return a pair of scores and ``merge_into`` ``[B, S]`` int64: the position of the representative of
    each, its own where it stands for itself. After the cut the hidden states of a kept token are then the mean of its
    own and those of the dropped tokens that it stands for, as they leave the layer. A token whose representative is
    dropped is just dropped, and a kept one is in no mean but its own, so only one step of ``merge_into`` is followed.
    It is ignored where it leads from or to a token that is not visual.

    Attributes:
        queries: gives the queries after rotary embedding of some positions, ``[T]`` or ``[B, T]`` int64, as
            ``[B, H, T, D]``; those of all for None. A layer may compute only what is asked for.
        heads: H.
        grouped_key: ``[B, Hkv, S, D]``, after rotary embedding, as the graph holds it.
        grouped_key_unrotated: ``[B, Hkv, S, D]`` or with H heads, before it.
        hidden: ``[B, S, C]``, the hidden states that enter the layer.
        is_visual: ``[B, S]`` bool, of real tokens.
        is_padding: ``[B, S]`` bool, wherever it is in a row. The layer's mask hides it from real tokens.
        frame: ``[B, S]`` int64: the number of the frame that a visual token belongs to in its row, -1 for all others.
            Text between visual tokens starts a new frame; where else one starts, see ``passes.analysis.frames``.
        scale: multiplies ``query @ key``; None for ``D ** -0.5``.
        mask: the attention mask of the layer, broadcastable to ``[B, H, S, S]``, boolean or additive; None
            for causal attention.
        kept: how many tokens of any kind a row keeps.
        budget: ``[B]`` int64, how many visual tokens each row keeps.
        layer: the number of the scoring layer, from 0.
        rotate: applies the layer's rotary embedding to keys laid out like ``grouped_key_unrotated``.
        sinks: ``[1 or B, 1 or H, 1, 1]``: one more logit of each query beside those of the keys, which takes a share of
            its attention and gives nothing; None without.
        is_causal: whether ``mask`` lets a query see all that is not after it, but padding.
        mask_rows: gives the rows of the mask, ``[B, 1, T, S]`` bool, for query positions ``[B, T]``: where it is known
            how the mask is made, so that nothing has to read ``mask``, which is S x S. None where it is not.
    """

    queries: Callable[[Tensor | None], Tensor]
    heads: int
    grouped_key: Tensor
    grouped_key_unrotated: Tensor
    hidden: Tensor
    is_visual: Tensor
    is_padding: Tensor
    frame: Tensor
    scale: float | None
    mask: Tensor | None
    kept: int
    budget: Tensor
    layer: int
    rotate: Callable[[Tensor], Tensor]
    sinks: Tensor | None = None
    is_causal: bool = False
    mask_rows: Callable[[Tensor], Tensor] | None = None

    @property
    def query(self) -> Tensor:
        """``[B, H, S, D]``: all queries, after rotary embedding."""
        return self.queries(None)

    @property
    def key(self) -> Tensor:
        """``[B, H, S, D]``: keys after rotary embedding, one for each query head."""
        return self._for_each_head(self.grouped_key)

    @property
    def key_unrotated(self) -> Tensor:
        """``[B, H, S, D]``: keys before rotary embedding, one for each query head."""
        return self._for_each_head(self.grouped_key_unrotated)

    @property
    def query_unrotated(self) -> Tensor:
        """``[B, H, S, D]``: queries before rotary embedding, as what ``rotate`` gives at their places, undone.

        The transpose of a rotation, whatever numbers it turns together and by which angles, is its inverse. Where the
        embedding scales too (YaRN, arXiv 2309.00071), queries stay scaled twice: their products with ``key_unrotated``
        are then the layer's own at distance 0.
        """
        unrotated = self.grouped_key_unrotated
        share = self.heads // unrotated.shape[1]
        transposed = torch.func.vjp(lambda keys: self._for_each_head(self.rotate(keys)), unrotated)[1]
        # The transpose adds up the heads that share a key: each of them is asked for alone.
        query = self.query
        number = torch.arange(self.heads, device=query.device)[:, None, None] % share
        alone = [transposed(query * (number == place))[0] for place in range(share)]
        return torch.stack(alone, dim=2).flatten(1, 2)

    @property
    def last(self) -> Tensor:
        """``[B, 1]`` int64: the last real position of each row."""
        position = torch.arange(self.is_padding.shape[1], device=self.is_padding.device)
        return position.where(~self.is_padding, 0).amax(1, keepdim=True)

    def attention(self, rows: Tensor) -> Tensor:
        """``[B, H, T, S]`` float32: the probabilities of the query positions ``rows``, ``[T]`` or ``[B, T]``."""
        key, mask = self.keys_and_mask_of(rows)
        return attention_rows(self.queries(rows), key, mask, self.scale)[..., : self.grouped_key.shape[2]]

    def keys_and_mask_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``grouped_key`` and ``mask_of(rows)``; where the layer has sinks, these are one more key, the last."""
        mask = self.mask_of(rows)
        return (self.grouped_key, mask) if self.sinks is None else sinks_as_key(self.grouped_key, mask, self.sinks)

    def mask_of(self, rows: Tensor) -> Tensor:
        """``[1 or B, 1 or H, T, S]``: the rows of the mask for the query positions ``rows``, ``[T]`` or ``[B, T]``.

        Boolean (True: may be seen) or additive, as the layer's own; boolean where the layer has none.
        """
        if self.mask is None:
            position = torch.arange(self.grouped_key.shape[2], device=rows.device)
            visible = position <= rows[..., None]
            return visible[None, None] if rows.ndim == 1 else visible[:, None]
        if self.mask_rows is not None:
            return self.mask_rows(rows.expand(self.is_visual.shape[0], -1))
        mask = self.mask
        if mask.shape[-2] == 1:
            return mask.expand(*mask.shape[:2], rows.shape[-1], mask.shape[3])
        if rows.ndim == 1:
            return mask.index_select(-2, rows)
        mask = mask.expand(len(rows), *mask.shape[1:])
        return mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))

    def visible_to(self, rows: Tensor) -> Tensor:
        """``mask_of`` those rows as booleans."""
        return to_bool_mask(self.mask_of(rows))

    def _for_each_head(self, key: Tensor) -> Tensor:
        return key.repeat_interleave(self.heads // key.shape[1], dim=1)


def among(query: Tensor) -> Callable[[Tensor | None], Tensor]:
    """``Context.queries`` of a layer whose queries ``[B, H, S, D]`` are all there."""

    def queries(rows: Tensor | None) -> Tensor:
        if rows is None:
            return query
        if rows.ndim == 1:
            return query.index_select(2, rows)
        return query.gather(2, rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))

    return queries

"""What a selection rule may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.attention_rows import attention_rows


@dataclass(frozen=True)
class Context:
    """The state of the scoring layer, before any token is dropped.

    A rule is a function ``score(ctx) -> Tensor[B, S]`` in plain PyTorch: higher is more important. It is
    traced into the graph, so it must not branch on the values of tensors. Only the scores of visual tokens
    are read: text is always kept, and padding dropped first.

    Attributes:
        query: ``[B, H, S, D]``, after rotary embedding.
        grouped_key: ``[B, Hkv, S, D]``, after rotary embedding, as the graph holds it.
        grouped_key_unrotated: ``[B, Hkv, S, D]`` or with H heads, before it.
        hidden: ``[B, S, C]``, the hidden states that enter the layer.
        is_visual: ``[B, S]`` bool.
        is_padding: ``[B, S]`` bool.
        scale: multiplies ``query @ key``; None for ``D ** -0.5``.
        mask: the attention mask of the layer, broadcastable to ``[B, H, S, S]``, boolean or additive; None
            for causal attention.
        kept: how many tokens of any kind a row keeps.
        rotate: applies the layer's rotary embedding to keys laid out like ``grouped_key_unrotated``.
    """

    query: Tensor
    grouped_key: Tensor
    grouped_key_unrotated: Tensor
    hidden: Tensor
    is_visual: Tensor
    is_padding: Tensor
    scale: float | None
    mask: Tensor | None
    kept: int
    rotate: Callable[[Tensor], Tensor]

    @property
    def key(self) -> Tensor:
        """``[B, H, S, D]``: keys after rotary embedding, one for each query head."""
        return self._for_each_head(self.grouped_key)

    @property
    def key_unrotated(self) -> Tensor:
        """``[B, H, S, D]``: keys before rotary embedding, one for each query head."""
        return self._for_each_head(self.grouped_key_unrotated)

    @property
    def frame(self) -> Tensor:
        """``[B, S]`` int64: the number of the run of visual tokens that a position is in, -1 outside.

        Text between two frames (a separator, a timestamp) starts a new run; frames that follow each other
        without any are one run.
        """
        before = torch.nn.functional.pad(self.is_visual, (1, 0))[:, :-1]
        run = (self.is_visual & ~before).cumsum(1) - 1
        return run.where(self.is_visual, -1)

    @property
    def budget(self) -> Tensor:
        """``[B]`` int64: how many visual tokens each row keeps."""
        text = (~self.is_visual & ~self.is_padding).sum(1)
        return (self.kept - text).minimum(self.is_visual.sum(1)).clamp_min(0)

    def attention(self, rows: Tensor, key: Tensor | None = None) -> Tensor:
        """``[B, H, T, S]`` float32: the probabilities of the query positions `rows` ``[T]``.

        `key` replaces the layer's own keys, ``[B, Hkv, S, D]``.
        """
        return attention_rows(self.query, self.grouped_key if key is None else key, rows, self.scale, self.mask)

    def _for_each_head(self, key: Tensor) -> Tensor:
        return key.repeat_interleave(self.query.shape[1] // key.shape[1], dim=1)

"""A decoder of a few lines, for graphs that compile in a moment and take any size.

It is written as the models of transformers are (rotary tables, repeated key heads, literal sizes in views),
and prunes itself: the oracle of the tests that use it is its own eager forward with `cut`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int, head_dim: int, eager: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.eager = heads, kv_heads, head_dim, eager
        self.q = nn.Linear(hidden, heads * head_dim)
        self.k = nn.Linear(hidden, kv_heads * head_dim)
        self.v = nn.Linear(hidden, kv_heads * head_dim)
        self.o = nn.Linear(heads * head_dim, hidden)
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, length, _ = hidden.shape
        x = F.layer_norm(hidden, hidden.shape[-1:])
        q, k, v = (
            project(x).view(rows, length, -1, self.head_dim).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        q = q * cos.unsqueeze(1) + rotate_half(q) * sin.unsqueeze(1)
        k = k * cos.unsqueeze(1) + rotate_half(k) * sin.unsqueeze(1)
        groups = self.heads // self.kv_heads
        if self.eager:
            many = [
                each[:, :, None]
                .expand(rows, self.kv_heads, groups, length, self.head_dim)
                .reshape(rows, self.heads, length, self.head_dim)
                for each in (k, v)
            ]
            scores = torch.matmul(q, many[0].transpose(2, 3)) * self.head_dim**-0.5
            if mask is not None:
                scores = scores + mask
            out = torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), many[1])
        else:
            out = self.attend(q, k, v, mask)
        hidden = hidden + self.o(out.transpose(1, 2).reshape(rows, length, self.heads * self.head_dim))
        return hidden + self.down(F.gelu(self.up(F.layer_norm(hidden, hidden.shape[-1:])))), k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        groups = self.heads // self.kv_heads
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=groups > 1)


class Toy(nn.Module):
    """Embeddings, an injection by `masked_scatter`, decoder layers, a head."""

    def __init__(
        self,
        hidden: int = 16,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 8,
        layers: int = 4,
        eager: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head_dim, self.eager = head_dim, eager
        self.embed = nn.Embedding(50, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads, kv_heads, head_dim, eager) for _ in range(layers))
        self.head = nn.Linear(hidden, 50)

    def forward(
        self,
        ids: Tensor,
        features: Tensor,
        attention_mask: Tensor | None = None,
        cut: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits ``[B, S, 50]`` of tokens `ids` ``[B, S]``, where id 49 stands for one of `features` ``[V, C]``.

        Also the keys of every layer. `cut` maps a layer to the positions ``[B, S']`` that are kept after it.
        """
        embeddings = self.embed(ids)
        hidden = embeddings.masked_scatter((ids == 49).unsqueeze(-1).expand_as(embeddings), features)
        return self.through_layers(hidden, attention_mask, cut)

    def through_layers(
        self, hidden: Tensor, attention_mask: Tensor | None = None, cut: dict[int, Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits and keys of embeddings ``[B, S, C]``, as of `forward`."""
        cos, sin, mask = self.positions(hidden, attention_mask)
        keys = []
        for number, layer in enumerate(self.layers):
            hidden, key = layer(hidden, cos, sin, mask)
            keys.append(key)
            if cut is not None and number in cut:
                hidden, cos, sin, mask = pruned(cut[number], hidden, cos, sin, mask)
        return self.head(hidden), keys

    def positions(self, hidden: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        length = hidden.shape[1]
        position = torch.arange(length)
        frequency = 1.0 / 100 ** (torch.arange(0, self.head_dim, 2) / self.head_dim)
        angle = torch.cat([position[None, :, None] * frequency] * 2, dim=-1)
        if attention_mask is None and not self.eager:
            return angle.cos(), angle.sin(), None
        mask = (position[:, None] >= position[None, :])[None, None]
        if attention_mask is not None:
            # A row of padding may see itself, or its softmax would be NaN; nobody else sees it.
            mask = mask & attention_mask.bool()[:, None, None, :]
        if self.eager:
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        return angle.cos(), angle.sin(), mask


def pruned(
    kept: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """All that the next layer reads, at the kept positions of each row; written with loops over rows."""
    rows = range(len(kept))
    if mask is not None:
        full = mask.expand(len(kept), -1, -1, -1)
        mask = torch.stack([full[row][:, kept[row]][:, :, kept[row]] for row in rows])
    cos, sin = (torch.stack([table.expand(len(kept), -1, -1)[row, kept[row]] for row in rows]) for table in (cos, sin))
    return torch.stack([hidden[row, kept[row]] for row in rows]), cos, sin, mask


def toy_inputs(
    visual: int = 20, text: int = 6, before: int = 2, rows: int = 1, pad: list[int] | None = None, hidden: int = 16
) -> dict[str, Tensor]:
    """Inputs of `Toy`: `before` text tokens, `visual` visual ones, then text, left-padded by `pad` in each row."""
    generator = torch.Generator().manual_seed(visual + text)
    pad = pad or [0] * rows
    length = max(pad) + text + visual
    ids = torch.randint(1, 49, (rows, length), generator=generator)
    for row, padding in enumerate(pad):
        ids[row, :padding] = 0
        ids[row, padding + before : padding + before + visual] = 49
    inputs = {"ids": ids, "features": torch.randn(rows * visual, hidden, generator=generator)}
    if any(pad):
        inputs["attention_mask"] = (torch.arange(length) >= torch.tensor(pad)[:, None]).long()
    return inputs

"""The oracle: a stock eager model whose visual tokens are dropped by hand, with forward hooks.

Nothing here comes from the package under test. The rules are those of the public contract, written down a
second time, for people to read and for the compiled models to be measured against:

    with oracle.prune(model, retention=0.25, layer=1, selector="fastv") as run:
        output = model(**inputs)  # or model.generate(**inputs, ...)
    run.kept[0]  # [B, S'] kept positions

Sizes: B rows of length S, V = visual tokens // B, S' = S - V + ceil(retention * V). A row with t text
tokens keeps them all, then n = min(S' - t, its visual tokens) visual tokens, then padding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch import nn

from tests.architectures import visual_mask


@dataclass
class State:
    """What enters the attention of a layer."""

    query: torch.Tensor  # [B, H, L, D], rotated
    unrotated: torch.Tensor  # [B, H, L, D], a key for each query head
    rotate: Callable[[torch.Tensor], torch.Tensor]  # of keys like those
    scaling: float
    mask: torch.Tensor | None

    def logits(self, key: torch.Tensor) -> torch.Tensor:
        """[B, H, L, L] float32, minus infinity where the mask hides a key."""
        scores = self.query.float() @ key.float().mT * self.scaling
        if self.mask is None:
            return scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        if self.mask.dtype == torch.bool:
            return scores.masked_fill(~self.mask, -torch.inf)
        return (scores + self.mask).masked_fill(self.mask < torch.finfo(self.mask.dtype).min / 2, -torch.inf)


@dataclass
class Tokens:
    """What a cut needs to know of the sequence that it shortens, of length L at the layer `layer`."""

    visual: torch.Tensor  # [B, L] bool
    padding: torch.Tensor  # [B, L] bool
    state: Callable[[], State]  # of the attention of layer `layer`
    frame: torch.Tensor  # [B, L]: the number of each visual token's frame in the whole sequence, -1 for others


Choose = Callable[[Tokens, list[int]], torch.Tensor]
"""(tokens, how many visual tokens each row keeps) -> scores [B, L], of which only the visual ones matter."""


def uniform(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """Of the V visual tokens of a row that keeps n, number floor(j * V / n) for j < n: score 1, others 0."""
    scores = torch.zeros(tokens.visual.shape)
    for row, count in enumerate(counts):
        positions = tokens.visual[row].nonzero().flatten()
        chosen = [j * len(positions) // count for j in range(count)]
        scores[row, positions[chosen]] = 1
    return scores


def fastv(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """The attention that the last position pays to each token, mean over heads (arXiv 2403.06764)."""
    state = tokens.state()
    return state.logits(state.rotate(state.unrotated))[:, :, -1].softmax(-1).mean(1)


def text_attention(tokens: Tokens) -> torch.Tensor:
    """The attention that the text behind the video pays to each token, mean over its rows and heads."""
    state = tokens.state()
    shares = state.logits(state.rotate(state.unrotated)).softmax(-1).mean(1)
    return torch.stack([shares[row, text_behind(tokens, row)].mean(0) for row in range(len(shares))])


def sharp(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """ShaRP with its defaults, as docs/method.md has it: debiased logits, segments of a frame, greedy dedup."""
    state = tokens.state()
    key = state.rotate(state.unrotated)
    result = torch.zeros(tokens.visual.shape)
    for row, count in enumerate(counts):
        visual = tokens.visual[row].nonzero().flatten()
        mean = state.unrotated[row : row + 1, :, visual].mean(2, keepdim=True)
        mean = mean.expand(len(tokens.visual), -1, key.shape[2], -1)
        content = (state.logits(key) - state.logits(state.rotate(mean)))[row][:, :, visual]
        scores = content[:, text_behind(tokens, row)].softmax(-1).mean((0, 1))
        top = scores.sort(descending=True, stable=True).indices[:16]
        frame = tokens.frame[row]
        hidden = tokens.visual[row] & (frame[visual, None] != frame[None])  # [V, L]: of another segment
        given = state.logits(key)[row][:, visual].masked_fill(hidden, -torch.inf).softmax(-1).mean(0)[:, visual]
        scores = scores + (scores[top, None] * given[top]).sum(0) / 2
        result[row, visual] = greedy(scores, state.unrotated[row][:, visual].transpose(0, 1).flatten(1), count)
    return result


def greedy(scores: torch.Tensor, vectors: torch.Tensor, count: int) -> torch.Tensor:
    """Scores that put tokens in the order: those that are no near copy of a better one, then the others."""
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    chosen: list[int] = []
    skipped: list[int] = []
    for token in scores.sort(descending=True, stable=True).indices.tolist():
        is_copy = len(chosen) < count and any(unit[token] @ unit[other] > 0.8 for other in chosen)
        (skipped if is_copy else chosen).append(token)
    order = torch.tensor([*chosen, *skipped])
    return torch.zeros(len(scores)).scatter(0, order, torch.arange(len(scores), 0, -1.0))


def text_behind(tokens: Tokens, row: int) -> torch.Tensor:
    """The positions of the text behind the last visual token, the last 64 of them."""
    last = tokens.visual[row].nonzero().max()
    positions = torch.arange(tokens.visual.shape[1])
    return positions[(positions > last) & ~tokens.padding[row]][-64:]


def frames(visual: torch.Tensor, tokens_per_frame: int | None) -> torch.Tensor:
    """The number of each visual token's frame [B, S], -1 for others; text between two tokens parts frames."""
    result = torch.full(visual.shape, -1)
    for row in range(len(visual)):
        frame, inside = -1, 0
        for position in visual[row].nonzero().flatten().tolist():
            if position == 0 or not visual[row, position - 1] or inside == tokens_per_frame:
                frame, inside = frame + 1, 0
            inside += 1
            result[row, position] = frame
    return result


SELECTORS = {"uniform": uniform, "fastv": fastv, "sharp": sharp}


def pruned_length(length: int, visual: int, retention: float) -> int:
    """S' = S - V + ceil(retention * V), in exact arithmetic; the retention is taken to six decimals."""
    return length - visual + ceil(Fraction(round(retention * 10**6), 10**6) * visual)


def keep(tokens: Tokens, length: int, choose: Choose) -> torch.Tensor:
    """The kept positions [B, `length`], ascending: text first, then visual tokens by score, then padding.

    Positions that are equal in that order are taken from the lowest up.
    """
    text = ~tokens.visual & ~tokens.padding
    if (text.sum(1) > length).any():
        raise ValueError(f"a row has more text tokens than the {length} positions that are kept")
    counts = torch.minimum(length - text.sum(1), tokens.visual.sum(1)).tolist()
    scores = choose(tokens, counts)
    rows = []
    for row in range(len(text)):
        visual = tokens.visual[row].nonzero().flatten()
        ranked = visual[scores[row, visual].sort(descending=True, stable=True).indices]
        order = torch.cat([text[row].nonzero().flatten(), ranked, tokens.padding[row].nonzero().flatten()])
        rows.append(order[:length].sort().values)
    return torch.stack(rows)


@dataclass
class Run:
    """What happened in the last prefill under `prune`: for each cut, the positions [B, S'] that remained.

    Positions count from the start of the whole sequence, whatever was cut before.
    """

    kept: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def prune(
    model: nn.Module,
    *,
    retention: float = 0.10,
    layer: int = 1,
    stages: Sequence[tuple[int, float]] | None = None,
    selector: str | Choose = "uniform",
    positions: torch.Tensor | None = None,
    tokens_per_frame: int | None = None,
) -> Iterator[Run]:
    """Prunes every call of `model` that has visual tokens, and makes the calls that follow on its cache work.

    `retention`, `layer`, `stages` and `selector` mean what they mean to the backend. Visual tokens in
    one piece are one frame, or frames of `tokens_per_frame`. With `positions`
    [B, S'] the one cut keeps those instead of choosing. Each of several stages scores what it sees.
    """
    choose = SELECTORS[selector] if isinstance(selector, str) else selector
    pruner = Pruner(decoder_layers(model), stages or [(layer, retention)], choose, positions, tokens_per_frame)
    handles = [model.register_forward_pre_hook(pruner.begin, with_kwargs=True)]
    for index, block in enumerate(pruner.layers):
        handles.append(block.register_forward_pre_hook(pruner.enter_layer(index), with_kwargs=True))
    for index, _ in pruner.cuts:
        attention = pruner.layers[index].self_attn
        handles.append(attention.register_forward_pre_hook(pruner.enter_attention(index), with_kwargs=True))
        for name in ("q_proj", "k_proj"):
            handles.append(getattr(attention, name).register_forward_hook(pruner.record(index, name)))
    try:
        yield pruner.run
    finally:
        for handle in handles:
            handle.remove()


class Pruner:
    """The hooks of `prune`, and what they remember of the running call."""

    def __init__(
        self,
        layers: nn.ModuleList,
        cuts: Sequence[tuple[int, float]],
        choose: Choose,
        positions: torch.Tensor | None,
        tokens_per_frame: int | None,
    ):
        self.layers = layers
        self.cuts = list(cuts)
        self.choose = choose
        self.positions = positions
        self.tokens_per_frame = tokens_per_frame
        self.run = Run()
        self.visual = self.padding = torch.empty(0)  # [B, S] of the running call
        self.prefill = False
        self.seen: dict[int, dict[str, Any]] = {}  # by layer: what its attention was called with

    def begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """At the start of a call: are there visual tokens to prune? A decoding step has none."""
        ids = kwargs["input_ids"]
        self.visual = visual_mask(model, kwargs)
        self.prefill = bool(self.visual.any()) and ids.shape[1] > 1
        if self.prefill:
            mask = kwargs.get("attention_mask")
            self.padding = torch.zeros_like(self.visual) if mask is None else mask == 0
            self.run.kept, self.seen = [], {}

    def enter_layer(self, index: int) -> Callable:
        """The pre-hook of decoder layer `index`."""
        cut = {after + 1: retention for after, retention in self.cuts}.get(index)

        def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if not self.prefill:
                return args, fit_mask(kwargs, index, args[0].shape[1])
            if cut is not None:
                chosen = self.cut(index - 1, cut)
                before = self.run.kept[-1] if self.run.kept else None
                args = (gather(args[0], chosen, -2), *args[1:])
                self.run.kept.append(chosen if before is None else before.gather(1, chosen))
            if self.run.kept:
                kwargs = gather_arguments(kwargs, self.run.kept[-1])
            return args, kwargs

        return hook

    def cut(self, layer: int, retention: float) -> torch.Tensor:
        """The positions [B, L'] of the running sequence of length L that remain after layer `layer`."""
        if self.positions is not None:
            return self.positions
        kinds = self.visual, self.padding, frames(self.visual, self.tokens_per_frame)
        if self.run.kept:
            kinds = tuple(kind.gather(1, self.run.kept[-1]) for kind in kinds)
        visual, padding, frame = kinds

        def state() -> State:
            return entering(self.layers[layer].self_attn, self.seen[layer])

        tokens = Tokens(visual, padding, state, frame)
        length = pruned_length(self.visual.shape[1], int(self.visual.sum()) // len(self.visual), retention)
        return keep(tokens, length, self.choose)

    def enter_attention(self, index: int) -> Callable:
        """Remembers the rotary tables and the mask that the scoring layer gets."""

        def hook(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if self.prefill:
                self.seen[index] = dict(kwargs)

        return hook

    def record(self, index: int, name: str) -> Callable:
        """Remembers the output of a projection of the scoring layer [B, L, H * D]."""

        def hook(projection: nn.Module, args: tuple, output: torch.Tensor) -> None:
            if self.prefill:
                self.seen[index][name] = output

        return hook


def entering(attention: nn.Module, seen: dict[str, Any]) -> State:
    """What enters an attention, from the outputs of its projections and the arguments that it got."""
    apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    query, key = (seen[name].unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for name in ("q_proj", "k_proj"))
    tables = seen["position_embeddings"]
    many = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    mask = seen.get("attention_mask")
    return State(
        apply(query, key, *tables)[0], many, lambda keys: apply(keys, keys, *tables)[1], attention.scaling, mask
    )


def gather_arguments(kwargs: dict[str, Any], kept: torch.Tensor) -> dict[str, Any]:
    """The arguments of a decoder layer at the kept positions [B, S']: rotary tables, masks, position ids."""
    kwargs = dict(kwargs)
    kwargs["position_embeddings"] = tuple(gather(table, kept, -2) for table in kwargs["position_embeddings"])
    mask = kwargs.get("attention_mask")
    if mask is not None:
        mask = gather(mask, kept, -1)
        kwargs["attention_mask"] = gather(mask, kept, -2) if mask.dim() == 4 else mask
    for name in ("position_ids", "cache_position"):
        if kwargs.get(name) is not None:
            kwargs[name] = gather(kwargs[name], kept, -1)
    return kwargs


def gather(tensor: torch.Tensor, kept: torch.Tensor, axis: int) -> torch.Tensor:
    """`tensor` [B or 1, ...] at the kept positions [B, S'] of its sequence axis, counted from the end."""
    rows = tensor.expand(len(kept), *tensor.shape[1:])
    return torch.stack([row.index_select(axis, positions) for row, positions in zip(rows, kept, strict=True)])


def fit_mask(kwargs: dict[str, Any], index: int, length: int) -> dict[str, Any]:
    """The arguments with a mask as wide as the keys of layer `index`, `length` new ones among them.

    The model makes one mask for all layers, as wide as layer 0's keys. A shorter layer has lost padding
    first and visual tokens then, so that in each row as many columns stay masked as padding was kept: the
    last columns are right.
    """
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if mask is None or cache is None:
        return kwargs
    return {**kwargs, "attention_mask": mask[..., -(cache.get_seq_length(index) + length) :]}


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers: the longest list of modules in the language model."""
    lists = (m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList))
    return max(lists, key=len)


def cache_lengths(cache: Any) -> list[int]:
    """The number of cached positions of each layer."""
    return [cache.get_seq_length(layer) for layer in range(len(cache.layers))]


def cache_tensors(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, both [B, H, length, D]."""
    return [(layer.keys, layer.values) for layer in cache.layers]

"""The oracle: a stock eager model whose visual tokens are dropped by hand, with forward hooks.

Nothing here comes from the package under test. The rules are those of the public contract, written down a
second time, for people to read and for the compiled models to be measured against:

    with oracle.prune(model, retention=0.25, layer=1, selector="fastv") as run:
        output = model(**inputs)  # or model.generate(**inputs, ...)
    run.kept[0]  # [B, S'] kept positions, cut after layer run.layers[0]

Sizes: B rows of length S, V = visual tokens // B, S' = S - V + ceil(retention * V). A row gives up S - S' tokens:
padding in front of its first real token, then visual tokens down to ceil(retention * v) of its own v, then other
padding, then the visual tokens that are left. Later positions go before equal earlier ones.

A selector may also tell which visual token stands for each visual token. After the cut, a kept token's hidden
state is then the mean of its own and those of the dropped tokens that it stands for.

Between its layers the model goes on to see whole sequences: a layer after the cut gets what it gets at the
kept positions only, and its outputs are put back where they come from, among NaNs (that nothing may use).
So whatever a model does between layers is right without the oracle knowing of it. What leaves the decoder
is shortened for good.

Everything keeps its original position: rotary tables, distances, sliding windows. A decoding step is the stock
model's on the shortened cache, with masks of the positions that are left. Only distances that an attention takes from
the cache count what is left (Inkling 2). Static caches are not
pruned: their reference is the oracle on a dynamic one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import StaticLayer
from transformers.modeling_utils import AttentionInterface

from tests.architectures import visual_mask

# The tensors that decoder layers take, by the argument's name, in one of these layouts: B is the batch (or 1),
# Q the queries and K the keys of the sequence, other letters whatever else there is.
LAYOUTS = {
    "hidden_states": ("BQC", "BQNC"),  # N: the streams of hyper-connections (GLM-5 Next)
    "position_embeddings": ("BQD", "ABQD"),  # the rotary tables, however nested
    "position_ids": ("BQ", "ABQ"),
    "attention_mask": ("BQ", "BHQK"),
    "conv_mask": ("BQ",),  # Inkling 2
    "block_states": ("BQNC",),  # Inkling 2: what the blocks of layers before gave
    "messages": ("BQNC",),  # Inkling 2 Loop: what the pass before gave
    "per_layer_input": ("BQC",),  # Gemma 4
    "relative_distance": ("BHQK",),  # both Inklings 2, where a row has its own
    "ple_input_ids": ("BQ",),  # Qwen4-Exp
    "moe_mm_token_type_ids": ("BQ",),  # Ernie 4.5
}
# What a layer takes from the one before if it has none of its own: the places of the best keys, as long as it is.
TAKEN = ("prev_topk_indices",)


@dataclass
class State:
    """What enters the attention of a layer."""

    query: torch.Tensor  # [B, H, L, D], rotated
    key: torch.Tensor  # [B, H, L, D], rotated, a key for each query head
    scaling: float
    mask: torch.Tensor | None
    hidden: torch.Tensor  # [B, L, C]: what enters the layer
    bias: torch.Tensor | None  # [B, H, L, L], added to the logits
    softcap: float | None  # bounds the logits before the mask
    sinks: torch.Tensor | None  # [B, H, L, 1]: one more logit for each query, which takes its share and gives nothing
    projected: torch.Tensor | None  # [B, L, heads * D]: the output of `k_proj`
    projected_query: torch.Tensor | None  # [B, L, H * D]: the output of `q_proj`
    rotation: Callable[[torch.Tensor], torch.Tensor] | None  # of keys [B, H, L, D]

    def products(self, key: torch.Tensor) -> torch.Tensor:
        """[B, H, L, L] float32: the logits of all queries with all keys, whether they see them or not."""
        scores = self.query.float() @ key.float().mT * self.scaling
        if self.bias is not None:
            scores = scores + self.bias
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def logits(self, key: torch.Tensor) -> torch.Tensor:
        """[B, H, L, L] float32, minus infinity where the mask hides a key."""
        scores = self.products(key)
        if self.mask is None:
            return scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        if self.mask.dtype == torch.bool:
            return scores.masked_fill(~self.mask, -torch.inf)
        return (scores + self.mask).masked_fill(self.mask < torch.finfo(self.mask.dtype).min / 2, -torch.inf)

    def weights(self) -> torch.Tensor:
        """The attention that each position pays to each [B, H, L, L]."""
        logits = self.logits(self.key)
        if self.sinks is None:
            return logits.softmax(-1)
        return torch.cat([logits, self.sinks.expand(*logits.shape[:-1], 1)], -1).softmax(-1)[..., :-1]

    @property
    def unrotated(self) -> torch.Tensor:
        """The keys before their rotation [B, H, L, D], for architectures where that is all that `k_proj` lacks."""
        return self.before_rotation(self.projected, self.key)

    @property
    def query_unrotated(self) -> torch.Tensor:
        """The queries before their rotation [B, H, L, D], where that is all that `q_proj` lacks."""
        return self.before_rotation(self.projected_query, self.query)

    def before_rotation(self, projected: torch.Tensor | None, rotated: torch.Tensor) -> torch.Tensor:
        """What was projected [B, L, heads * D] and became `rotated` [B, H, L, D], one for each head of that."""
        if projected is None or self.rotation is None:
            raise NotImplementedError("nothing unrotated: the attention has no projection or no rotary tables")
        batch, heads, length, size = rotated.shape
        states = projected.view(batch, length, -1, size).transpose(1, 2)
        states = states.repeat_interleave(heads // states.shape[1], dim=1)
        if not torch.allclose(self.rotation(states), rotated, atol=1e-5):
            raise NotImplementedError("nothing unrotated: more than a rotation lies between projection and attention")
        return states

    def rotate(self, key: torch.Tensor) -> torch.Tensor:
        """The rotation of the positions, of keys like the unrotated ones."""
        assert self.rotation is not None
        return self.rotation(key)


@dataclass
class Tokens:
    """What a cut needs to know of the sequence that it shortens, of length L at the layer `layer`."""

    visual: torch.Tensor  # [B, L] bool, real tokens only
    padding: torch.Tensor  # [B, L] bool
    leading: torch.Tensor  # [B, L] bool: the padding in front of the first real token of the whole sequence
    least: list[int]  # ceil(retention * v) of the v visual tokens of each row of the whole sequence
    state: Callable[[], State]  # of the attention of layer `layer`
    frame: torch.Tensor  # [B, L]: the number of each visual token's frame in the whole sequence, -1 for others
    layer: int  # the scoring one


Choose = Callable[[Tokens, list[int]], torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
"""(tokens, how many visual tokens each row keeps) -> scores [B, L], of which only the visual ones matter.

It may return a pair of the scores and, for each visual token, the position of the visual token that stands for it,
[B, L]: its own where that is itself.
"""


def uniform(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """Of the V visual tokens of a row that keeps n, number floor(j * V / n) for j < n: score 1, others 0."""
    scores = torch.zeros(tokens.visual.shape)
    for row, count in enumerate(counts):
        positions = tokens.visual[row].nonzero().flatten()
        chosen = [j * len(positions) // count for j in range(count)]
        scores[row, positions[chosen]] = 1
    return scores


def fastv(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """The attention that the last real token pays to each token, mean over heads (arXiv 2403.06764)."""
    return torch.stack([given[:, last_real(tokens, row)].mean(0) for row, given in enumerate(tokens.state().weights())])


def feather(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """3 tenths of the tokens as by `uniform`, then attention from the last position without rotation (2412.13180)."""
    state = tokens.state()
    scores = 2 * uniform(tokens, [3 * count // 10 for count in counts])
    for row in range(len(counts)):
        visual = tokens.visual[row].nonzero().flatten()
        query, key = state.query_unrotated[row, :, last_real(tokens, row)], state.unrotated[row][:, visual]
        logits = torch.stack([each @ keys.mT for each, keys in zip(query, key, strict=True)]) * state.scaling
        scores[row, visual] += logits.softmax(-1).mean(0)
    return scores


def sparsevlm(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """The attention of the text after the video that is most like it, mean over its rows and heads (2410.04417)."""
    state = tokens.state()
    shares, scores = state.weights().mean(1), []
    for row in range(len(counts)):
        text, hidden = text_behind(tokens, row), state.hidden[row]
        relevance = (hidden[tokens.visual[row]] @ hidden[text].mT).softmax(-1).mean(0)
        scores.append(shares[row, text[relevance >= relevance.mean()]].mean(0))
    return torch.stack(scores)


def visiondrop(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """The attention that each token receives from the visual tokens, mean over them and heads (2506.22283)."""
    shares = tokens.state().weights().mean(1)
    return torch.stack([given[visual].mean(0) for given, visual in zip(shares, tokens.visual, strict=True)])


def text_attention(tokens: Tokens) -> torch.Tensor:
    """The attention that the mean query of the text after the video pays to each token, mean over heads.

    It sees what the last position sees.
    """
    state = tokens.state()
    seen = state.logits(state.key)
    hidden = torch.stack([each[:, last_real(tokens, row)].isinf() for row, each in enumerate(seen)])
    return of_text(state.products(state.key), tokens).masked_fill(hidden, -torch.inf).softmax(-1).mean(1)


def of_text(products: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """[B, H, L]: the mean of products [B, H, L, L] over the text, where the last position counts more than others.

    The others count 0.6 together at layer 0, and 0.6 of that with each layer.
    """
    rows, share = [], 0.6 ** (tokens.layer + 1)
    for row, each in enumerate(products):
        *others, last = text_behind(tokens, row).tolist()
        rows.append((1 - share) * each[:, last] + share * each[:, others].mean(1) if others else each[:, last])
    return torch.stack(rows)


def sharp(tokens: Tokens, counts: list[int]) -> torch.Tensor:
    """ShaRP with its defaults, as docs/method.md has it: debiased logits, segments of a frame, dedup."""
    state = tokens.state()
    key, unrotated = state.key, state.unrotated
    result = torch.zeros(tokens.visual.shape)
    for row, count in enumerate(counts):
        visual = tokens.visual[row].nonzero().flatten()
        mean = unrotated[row : row + 1, :, visual].mean(2, keepdim=True)
        mean = mean.expand(len(tokens.visual), -1, key.shape[2], -1)
        content = of_text(state.products(key) - state.products(state.rotate(mean)), tokens)[row][:, visual]
        scores = content.softmax(-1).mean(0)
        top = scores.sort(descending=True, stable=True).indices[:16]
        frame = tokens.frame[row]
        hidden = tokens.visual[row] & (frame[visual, None] != frame[None])  # [V, L]: of another segment
        given = state.logits(key)[row][:, visual].masked_fill(hidden, -torch.inf).softmax(-1).mean(0)[:, visual]
        scores = scores + (scores[top, None] * given[top]).sum(0) / 2
        result[row, visual] = without_copies(scores, state.hidden[row, visual], count)
    return result


def framefusion(tokens: Tokens, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """FrameFusion (arXiv 2501.01986): what is like the token at its place of the frame before merges with it.

    Tokens that merge rank below all others, the more alike the lower; others by `fastv`.
    """
    scores, hidden = fastv(tokens, counts).clone(), tokens.state().hidden
    into = torch.arange(scores.shape[1]).repeat(len(scores), 1)
    for row, frame in enumerate(tokens.frame):
        before: list[int] = []
        for number in frame[frame >= 0].unique().tolist():
            here = (frame == number).nonzero().flatten().tolist()
            for position, other in zip(here, before, strict=False):
                cosine = torch.cosine_similarity(hidden[row, position], hidden[row, other], dim=0)
                if cosine > 0.6:
                    into[row, position] = into[row, other]
                    scores[row, position] = -cosine
            before = here
    return scores, into


def without_copies(scores: torch.Tensor, vectors: torch.Tensor, count: int) -> torch.Tensor:
    """Positive scores, a tenth of them for near copies of better tokens; at most `count` tokens are no copies."""
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    chosen: list[int] = []
    result = scores.clone()
    for token in scores.sort(descending=True, stable=True).indices.tolist():
        if len(chosen) == count:
            break
        if any(unit[token] @ unit[other] > 0.9 for other in chosen):
            result[token] /= 10
        else:
            chosen.append(token)
    return result


def text_behind(tokens: Tokens, row: int) -> torch.Tensor:
    """The positions of the text after the last visual token, the last 64 of them."""
    last = tokens.visual[row].nonzero().max()
    positions = torch.arange(tokens.visual.shape[1])
    return positions[(positions > last) & ~tokens.padding[row]][-64:]


def last_real(tokens: Tokens, row: int) -> int:
    """The position of the last real token of a row."""
    return int((~tokens.padding[row]).nonzero().max())


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


SELECTORS = {
    "uniform": uniform,
    "fastv": fastv,
    "pyramiddrop": fastv,  # for stages
    "feather": feather,
    "sparsevlm": sparsevlm,
    "visiondrop": visiondrop,
    "sharp": sharp,
    "framefusion": framefusion,
}


def pruned_length(length: int, visual: int, retention: float) -> int:
    """S' = S - V + ceil(retention * V)."""
    return length - visual + share_of(visual, retention)


def keep(tokens: Tokens, length: int, choose: Choose) -> torch.Tensor:
    """The kept positions [B, `length`], ascending."""
    return keep_and_merge(tokens, length, choose)[0]


def keep_and_merge(tokens: Tokens, length: int, choose: Choose) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The kept positions of `keep`, and what stands for each token [B, L], None where tokens are dropped only."""
    rows, drop = range(len(tokens.visual)), tokens.visual.shape[1] - length
    going = [order_of_kinds(tokens, row)[:drop] for row in rows]
    if any(len(kinds) < drop for kinds in going):
        raise ValueError(f"a row has more text tokens than the {length} positions that are kept")
    counts = [int(tokens.visual[row].sum()) - going[row].count("visual") for row in rows]
    chosen = choose(tokens, counts)
    scores, into = chosen if isinstance(chosen, tuple) else (chosen, None)
    kept = []
    for row in rows:
        visual = tokens.visual[row].nonzero().flatten()
        best_first = visual[scores[row, visual].sort(descending=True, stable=True).indices]
        last = {
            "leading": positions_of(tokens.leading[row]),
            "visual": best_first.tolist(),
            "other": positions_of(tokens.padding[row] & ~tokens.leading[row]),
        }
        gone = [last[kind].pop() for kind in going[row]]
        kept.append([position for position in range(tokens.visual.shape[1]) if position not in gone])
    return torch.tensor(kept), into


def order_of_kinds(tokens: Tokens, row: int) -> list[str]:
    """What a row gives up, from the first to the last of all that it may give up."""
    visual, leading = int(tokens.visual[row].sum()), int(tokens.leading[row].sum())
    other = int(tokens.padding[row].sum()) - leading
    least = min(tokens.least[row], visual)
    return ["leading"] * leading + ["visual"] * (visual - least) + ["other"] * other + ["visual"] * least


def positions_of(mask: torch.Tensor) -> list[int]:
    """Where a mask [L] is True."""
    return mask.nonzero().flatten().tolist()


def share_of(count: int, retention: float) -> int:
    """ceil(retention * count), in exact arithmetic; the retention is taken to six decimals."""
    return ceil(Fraction(round(retention * 10**6), 10**6) * count)


def merge(states: torch.Tensor, kept: torch.Tensor, into: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """`states` [B, L, C], each of the `kept` [B, L'] the mean of its own and of the dropped ones it stands for.

    `into` [B, L] is read between `visual` tokens [B, L] only.
    """
    if states.dim() != 3:
        raise NotImplementedError("several streams of hidden states")
    result = states.clone()
    for row in range(len(states)):
        for position in kept[row].tolist():
            given = [
                other
                for other in range(states.shape[1])
                if into[row, other] == position
                and visual[row, other]
                and visual[row, position]
                and other not in kept[row].tolist()
            ]
            result[row, position] = states[row, [position, *given]].mean(0)
    return result


@dataclass
class Run:
    """What happened in the last prefill under `prune`: for each cut, the positions [B, S'] that remained.

    Positions count from the start of the whole sequence, whatever was cut before. `layers` are the layers
    after which the cuts were: later ones than were asked for, where those couldn't serve.
    """

    kept: list[torch.Tensor] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)

    def kept_in(self, layer: int) -> torch.Tensor | None:
        """The positions [B, S'] that layer `layer` sees, unless it sees all."""
        kept = [kept for after, kept in zip(self.layers, self.kept, strict=True) if after < layer]
        return kept[-1] if kept else None


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
    [B, S'] the one cut keeps those instead of choosing. Each of several stages scores, and merges, what it sees.
    """
    choose = SELECTORS[selector] if isinstance(selector, str) else selector
    decoder = text_model(model)
    pruner = Pruner(layers_of(decoder), stages or [(layer, retention)], choose, positions, tokens_per_frame)
    handles = [
        model.register_forward_pre_hook(pruner.begin, with_kwargs=True),
        decoder.register_forward_pre_hook(pruner.enter_decoder, with_kwargs=True),
        decoder.register_forward_hook(pruner.leave_decoder),
    ]
    for index, block in enumerate(pruner.layers):
        handles.append(block.register_forward_pre_hook(pruner.enter_layer(index), with_kwargs=True))
        handles.append(block.register_forward_hook(pruner.leave_layer(index)))
        for name, module in block.named_modules():
            if name == "self_attn":
                handles.append(module.register_forward_pre_hook(pruner.enter_attention, with_kwargs=True))
            if name in ("self_attn.k_proj", "self_attn.q_proj"):
                handles.append(module.register_forward_hook(pruner.leave_projection(name)))
            if type(module).__name__ in ("InklingRelativeLogits", "Inkling2RelativeLogits"):
                handles.append(module.register_forward_hook(pruner.relative_logits(index)))
    # Older versions look up all attention functions but eager ones, by their name alone.
    lookup = "get_interface" if hasattr(AttentionInterface, "get_interface") else "__getitem__"
    watched = pruner.watch(getattr(AttentionInterface, lookup))
    patches = [mock.patch.object(AttentionInterface, lookup, watched)]
    # A part that generates by itself is called past the model by the `generate` of the model.
    for part in model.children():
        if isinstance(part, GenerationMixin):
            handles.append(part.register_forward_pre_hook(pruner.begin_part(model), with_kwargs=True))
            patches.append(mock.patch.object(model, "generate", pruner.remember_prompt(model.generate)))
    try:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield pruner.run
    finally:
        pruner.undo()
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
        # Of the running call
        self.begun = self.prefill = self.entered_whole = False
        self.streams_in_front = False  # are hidden states [N, B, S, C], as Gemma 3n's?
        self.prompt = torch.empty(0)  # the ids [B, S] that a `generate` of the model's own was given
        self.visual = self.padding = torch.empty(0)  # [B, S]
        self.due: list[tuple[int, float]] = []  # the cuts to come
        self.last_addition = -1  # the last layer after which visual features are added
        self.seen: dict[str, Any] | None = None  # what enters the attention of the layer that runs, or ran last
        # Of the cache that the last prefill filled
        self.cache: Any = None
        self.length = 0  # of its prompt
        self.past = 0  # positions seen before the running call
        self.dropped: list[int] = []  # positions that each layer lacks
        self.restore: dict[int, Callable[[], None]] = {}  # by layer: makes it tell its own length again

    # The model

    def begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """At the start of a call: are there visual tokens to prune? A decoding step has none."""
        self.undo()  # as nothing did, if the last call failed
        ids, cache = kwargs["input_ids"], cache_among(kwargs)
        self.visual = visual_mask(model, kwargs)
        self.prefill = bool(self.visual.any()) and ids.shape[1] > 1
        self.begun = True
        self.seen = None
        if self.prefill:
            if any(isinstance(layer, StaticLayer) for layer in getattr(cache, "layers", ())):
                raise NotImplementedError("the oracle doesn't prune static caches: compare with a dynamic one")
            if cache is not None and cache.get_seq_length() > 0:
                raise NotImplementedError("the oracle doesn't prune visual tokens after a cache that holds tokens")
            mask = kwargs.get("attention_mask")
            self.padding = torch.zeros_like(self.visual) if mask is None else mask == 0
            self.run.kept, self.run.layers = [], []
            self.due = list(self.cuts)
            self.cache, self.dropped, self.length = None, [], ids.shape[1]
        elif cache is not None and cache is self.cache:
            for index, count in enumerate(self.dropped):
                if count:
                    self.restore[index] = pretend_longer(cache.layers[index], count)
            self.past = cache.get_seq_length()
        else:
            self.run.kept, self.run.layers = [], []

    def remember_prompt(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def remembering(*args: Any, **kwargs: Any) -> Any:
            self.prompt = kwargs["input_ids"]
            return generate(*args, **kwargs)

        return remembering

    def begin_part(self, model: nn.Module) -> Callable[..., None]:
        """At the start of a call of the language model that a `generate` of the model's own makes."""

        def begin(part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if not self.begun:
                ids = kwargs.get("input_ids")
                self.begin(model, args, kwargs | {"input_ids": self.prompt if ids is None else ids})

        return begin

    def enter_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """DeepStack: features are added after the first layers, as many as there are sets of them."""
        if not self.begun:
            raise NotImplementedError("the language model was called past the model, which knows the visual tokens")
        self.last_addition = len(kwargs.get("deepstack_visual_embeds") or ()) - 1

    def leave_decoder(self, decoder: nn.Module, args: tuple, output: Any) -> None:
        """What leaves the decoder is as long as the last layers were."""
        self.begun = False
        self.undo()
        if not self.prefill:
            return
        if self.due:
            raise ValueError(f"no layer from {self.due[0][0]} on serves this selector, or the model has no such layer")
        self.cache = output.past_key_values
        self.dropped = [self.visual.shape[1] - self.length_in(index) for index in range(len(self.layers))]
        output.last_hidden_state = self.shorten(output.last_hidden_state, len(self.layers))
        if output.hidden_states is not None:  # number i enters layer i; the one at the cut stays long
            short = (self.shorten(states, index - 1) for index, states in enumerate(output.hidden_states))
            output.hidden_states = tuple(short)

    def kept_in(self, layer: int) -> torch.Tensor | None:
        """The positions [B, S'] that layer `layer` sees, unless it sees all."""
        return self.run.kept_in(layer)

    def length_in(self, layer: int) -> int:
        """The number of positions that layer `layer` sees."""
        kept = self.kept_in(layer)
        return self.visual.shape[1] if kept is None else kept.shape[1]

    def shorten(self, states: torch.Tensor, layer: int) -> torch.Tensor:
        """The hidden states [B, S, ...] at the positions that layer `layer` sees; a part of them stays as it is."""
        kept = self.kept_in(layer)
        return states if kept is None or not self.is_whole(states) else gather(states, "BQ", "Q", kept)

    def is_whole(self, states: torch.Tensor) -> bool:
        """Have hidden states [B, ...] all positions? The model may compute its last layers for the last ones only."""
        return states.shape[1] == self.visual.shape[1]

    def rows_in_front(self, states: torch.Tensor) -> torch.Tensor:
        """The hidden states of a layer as [B, S, ...]."""
        return states.movedim(0, 2) if self.streams_in_front else states

    def as_in_model(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, S, ...] in the order of axes that the model has."""
        return states.movedim(2, 0) if self.streams_in_front else states

    def undo(self) -> None:
        """Makes all layers of the cache tell their own lengths."""
        for restore in self.restore.values():
            restore()
        self.restore = {}

    # The layers

    def enter_layer(self, index: int) -> Callable:
        """The pre-hook of decoder layer `index`."""

        def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            names = list(inspect.signature(block.forward).parameters)
            arguments = dict(zip(names, args, strict=False)) | kwargs
            if self.prefill:
                self.streams_in_front = arguments["hidden_states"].shape[1:-1] == self.visual.shape
            arguments["hidden_states"] = self.rows_in_front(arguments["hidden_states"])
            if self.prefill:
                self.entered_whole = self.is_whole(arguments["hidden_states"])
                if (distance := arguments.get("relative_distance")) is not None:
                    arguments["relative_distance"] = distance[None, None]
                arguments |= self.cut_before(index, block, arguments)
                arguments = self.gather_arguments(arguments, index)
            else:
                if index in self.restore:
                    self.restore.pop(index)()
                arguments = fit_mask(arguments, block, index, self.kept_in(index), self.length, self.past)
            self.seen = {"hidden": arguments["hidden_states"]}
            arguments["hidden_states"] = self.as_in_model(arguments["hidden_states"])
            return tuple(arguments[name] for name in names[: len(args)]), {name: arguments[name] for name in kwargs}

        return hook

    def cut_before(self, index: int, block: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Cuts after layer `index - 1`, if a cut is due and that layer serves; returns the arguments that change."""
        layer = index - 1
        if not self.due or layer < self.due[0][0] or layer < self.last_addition:
            return {}
        if self.choose is not uniform and self.positions is None and "query" not in self.seen:
            return {}
        _, retention = self.due.pop(0)
        if self.due and self.due[0][0] <= layer:
            raise NotImplementedError(f"two cuts meet after layer {layer}")
        if not self.entered_whole:
            raise NotImplementedError(f"layer {index} computes the last positions only: there is nothing to cut")
        taken = {name: None for name in TAKEN if arguments.get(name) is not None}
        if taken and getattr(block.self_attn, "indexer", None) is None:
            raise NotImplementedError(f"what later layers take from layers up to {layer} would have to be cut too")
        running = self.run.kept[-1] if self.run.kept else torch.arange(self.visual.shape[1]).expand_as(self.visual)
        kept, states = self.choose_positions(layer, retention, arguments["hidden_states"])
        # Keys and values that later layers take from earlier ones.
        shared = arguments.get("shared_kv_states") or {}
        for kind, (keys, values) in list(shared.items()):
            places = torch.searchsorted(running.contiguous(), kept)[:, None, :, None]
            shared[kind] = tuple(
                each.gather(2, places.expand(-1, each.shape[1], -1, each.shape[3])) for each in (keys, values)
            )
        self.run.kept.append(kept)
        self.run.layers.append(layer)
        return {"hidden_states": states, **taken}

    def choose_positions(self, layer: int, retention: float, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions [B, L'] of the whole sequence that remain after `layer` of the running one, of length L.

        Also the hidden states [B, S, ...], those that remain merged with others if the selector says so.
        """
        if self.positions is not None:
            return self.positions, states
        real = self.visual & ~self.padding
        leading = torch.stack([(~pads).nonzero().min() > torch.arange(len(pads)) for pads in self.padding])
        kinds = real, self.padding, leading, frames(real, self.tokens_per_frame)
        if self.run.kept:
            kinds = tuple(kind.gather(1, self.run.kept[-1]) for kind in kinds)
        visual, padding, leading, frame = kinds
        seen, least = self.seen, [share_of(count, retention) for count in real.sum(1).tolist()]
        tokens = Tokens(visual, padding, leading, least, lambda: entering(seen), frame, layer)
        length = pruned_length(self.visual.shape[1], int(self.visual.sum()) // len(self.visual), retention)
        chosen, into = keep_and_merge(tokens, length, self.choose)
        running = self.run.kept[-1] if self.run.kept else torch.arange(self.visual.shape[1]).expand_as(self.visual)
        if into is not None:
            rows = torch.arange(len(running))[:, None]
            states = states.index_put((rows, running), merge(states[rows, running], chosen, into, visual))
        return running.gather(1, chosen), states

    def gather_arguments(self, arguments: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The arguments of layer `index` at the positions that it sees."""
        kept, length = self.kept_in(index), arguments["hidden_states"].shape[1]
        if kept is None:
            return dict(arguments)
        letters = "QK" if self.entered_whole else "K"
        if letters == "K":  # Gemma 4
            assert kept[:, -length:].equal(torch.arange(self.visual.shape[1])[-length:].expand(len(kept), -1))
        return {name: gather_argument(value, name, letters, kept) for name, value in arguments.items()}

    def leave_layer(self, index: int) -> Callable:
        """The hook that puts the outputs of layer `index` [B, S', ...] back among NaNs [B, S, ...]."""

        def hook(block: nn.Module, args: tuple, output: Any) -> Any:
            kept = self.kept_in(index) if self.prefill else None
            if kept is None or not self.entered_whole:
                return output
            states, *others = output if isinstance(output, tuple) else (output,)
            if any(isinstance(other, torch.Tensor) and other.is_floating_point() for other in others):
                raise NotImplementedError(f"{type(block).__name__} returns more than hidden states and places")
            states = self.rows_in_front(states)
            whole = states.new_full((len(states), self.visual.shape[1], *states.shape[2:]), torch.nan)
            whole[torch.arange(len(states))[:, None], kept] = states
            whole = self.as_in_model(whole)
            return (whole, *others) if isinstance(output, tuple) else whole

        return hook

    # The attention

    def watch(self, get_interface: Callable) -> Callable:
        """`get_interface`, of whose functions the calls inside decoder layers are remembered."""

        def attend(function: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            names = ("query", "key", "value", "attention_mask")
            # Attention of a token to its own streams, or to layers before, is another.
            if self.prefill and self.seen is not None and args[0].shape[-2] == self.seen["hidden"].shape[1]:
                self.seen |= {"attention": module, **dict(zip(names, args, strict=False)), **kwargs}
            return function(module, *args, **kwargs)

        def get(interface: AttentionInterface, implementation: str, *default: Callable) -> Callable:
            return partial(attend, get_interface(interface, implementation, *default))

        return get

    def enter_attention(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Remembers the rotary tables that the attention of a layer gets."""
        if self.prefill:
            self.seen["tables"] = kwargs.get("position_embeddings")

    def leave_projection(self, name: str) -> Callable:
        """The hook that remembers keys or queries as the projection `name` gives them [B, L, heads * D]."""

        def hook(projection: nn.Module, args: tuple, output: torch.Tensor) -> None:
            if self.prefill:
                self.seen[name] = output

        return hook

    def relative_logits(self, index: int) -> Callable:
        """The bias by distance of both Inklings [B, H, L, L], in the prefill: their attention counts the positions."""

        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            kept = self.kept_in(index) if self.prefill else None
            if kept is None:
                return output
            rows = zip(args[0].split(1), kept, strict=True)
            return torch.cat([module.forward(states, positions, positions) for states, positions in rows])

        return hook


def entering(seen: Mapping[str, Any]) -> State:
    """What enters an attention."""
    query, key, tables = seen["query"], seen["key"], seen.get("tables")
    apply = getattr(sys.modules[type(seen["attention"]).__module__], "apply_rotary_pos_emb", None)
    both = apply is not None and list(inspect.signature(apply).parameters)[:2] == ["q", "k"]
    return State(
        query,
        key.repeat_interleave(query.shape[1] // key.shape[1], dim=1),
        query.shape[-1] ** -0.5 if seen.get("scaling") is None else seen["scaling"],
        seen["attention_mask"],
        seen["hidden"],
        seen.get("position_bias"),
        seen.get("softcap"),
        seen["s_aux"].view(1, -1, 1, 1) if seen.get("s_aux") is not None else seen.get("sinks"),
        seen.get("self_attn.k_proj"),
        seen.get("self_attn.q_proj"),
        (lambda keys: apply(keys, keys, *tables)[1]) if tables is not None and both else None,
    )


def gather_argument(value: Any, name: str, letters: str, kept: torch.Tensor) -> Any:
    """The argument `name` of a decoder layer at the kept positions [B, S'] of the axes `letters` of its layout."""
    # The one is of older versions, for static caches only, which the oracle doesn't prune; others are cut already.
    if name == "cache_position" or name in TAKEN:
        return value
    if isinstance(value, torch.Tensor):
        for layout in LAYOUTS.get(name, ()):
            if len(layout) == value.dim():
                for letter in letters:
                    value = gather(value, layout, letter, kept)
                return value
        raise NotImplementedError(
            f"the oracle doesn't know the argument {name} {tuple(value.shape)} of a decoder layer"
        )
    if isinstance(value, tuple | list):
        return type(value)(gather_argument(part, name, letters, kept) for part in value)
    if isinstance(value, dict):
        return {key: gather_argument(part, name, letters, kept) for key, part in value.items()}
    if name in LAYOUTS and value is not None:
        raise NotImplementedError(f"the oracle can't shorten the argument {name}, a {type(value).__name__}")
    return value


def gather(tensor: torch.Tensor, layout: str, letter: str, kept: torch.Tensor) -> torch.Tensor:
    """`tensor` at the kept positions [B, S'] of one axis; as it is where its layout has none."""
    if letter not in layout:
        return tensor
    batch, axis = layout.index("B"), layout.replace("B", "").index(letter)
    rows = tensor.movedim(batch, 0)
    rows = rows.expand(len(kept), *rows.shape[1:])
    return torch.stack([row.index_select(axis, at) for row, at in zip(rows, kept, strict=True)], batch)


# Decoding


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The cache that a model or a decoder layer is given, under any of its names."""
    names = ("past_key_values", "past_key_value", "layer_past", "cache")
    return next((arguments[name] for name in names if arguments.get(name) is not None), None)


def fit_mask(
    arguments: Mapping[str, Any], block: nn.Module, index: int, kept: torch.Tensor | None, length: int, past: int
) -> dict[str, Any]:
    """The arguments with a mask for the keys that layer `index` holds, in a call that goes on a cache.

    The model makes one mask for all layers of a kind, whose columns are the last of the `past` positions that were
    seen and those of the call. A layer after the cut has the `kept` [B, S'] of the prompt's `length` and all that
    follow, or the last of these. Each takes the column of its position; what has none is out of the window.
    """
    arguments = dict(arguments)
    cache, queries = cache_among(arguments), arguments["hidden_states"].shape[1]
    index += arguments.get("cache_offset") or 0  # Inkling 2 Loop: each pass has layers of the cache
    layer = cache.layers[index] if cache is not None and index < len(cache.layers) else None
    mask = arguments.get("attention_mask")
    shares = type(layer).__name__ == "DummyLayer"
    if kept is None or layer is None or (mask is not None and mask.dim() != 4):
        return arguments
    if shares and "shared_kv_states" not in arguments:  # one that has no keys at all
        return arguments
    if shares:
        # Gemma 4's last layers, with the keys of the last layer of their kind before
        width = arguments["shared_kv_states"][block.self_attn.layer_type][0].shape[-2]
        window = getattr(block.self_attn, "sliding_window", None)
    else:
        held = getattr(layer, "keys", None)
        width = queries + (0 if held is None or not held.numel() else held.shape[-2])
        window = layer.sliding_window if getattr(layer, "is_sliding", False) else None
    later = torch.arange(length, past + queries).expand(len(kept), -1)
    position = torch.cat([kept, later], 1)[:, -width:]
    if arguments.get("relative_distance") is not None:
        arguments["relative_distance"] = torch.arange(past, past + queries)[:, None] - position[:, None, None]
    if mask is None and window is None:
        return arguments
    if mask is None:
        asked = torch.arange(past, past + queries)[:, None]
        visible = (position[:, None] <= asked) & (position[:, None] > asked - window)
        return arguments | {"attention_mask": visible[:, None]}
    column = position - (past + queries - mask.shape[-1])
    fitted = gather(mask, "BHQK", "K", column.clamp_min(0))
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return arguments | {"attention_mask": fitted.masked_fill((column < 0)[:, None, None], hidden)}


def pretend_longer(layer: Any, count: int) -> Callable[[], None]:
    """Makes a layer of a cache tell the length of one that lost no positions; returns what undoes it.

    The model asks one layer for the length of all, and makes positions and masks from it.
    """
    if hasattr(layer, "cumulative_length"):

        def undo() -> None:
            layer.cumulative_length -= count

        layer.cumulative_length += count
        return undo
    if not hasattr(layer, "get_seq_length"):
        return lambda: None
    length = layer.get_seq_length() + count
    layer.get_seq_length = lambda: length
    return partial(delattr, layer, "get_seq_length")


# The parts of a model and of a cache


def text_model(model: nn.Module) -> nn.Module:
    """The module that calls the decoder layers: the outermost one in the language model that has layers."""
    owners = {name: module for name, module in model.get_decoder().named_modules() if layers_of(module) is not None}
    return owners[min(owners, key=lambda name: len(name.split(".")) if name else 0)]


def layers_of(module: nn.Module) -> nn.ModuleList | None:
    """The layers of a module that has a list of them, which Falcon calls by another name."""
    lists = (getattr(module, name, None) for name in ("layers", "h"))
    return next((each for each in lists if isinstance(each, nn.ModuleList)), None)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of the language model."""
    return layers_of(text_model(model))


def cache_lengths(cache: Any) -> list[int | None]:
    """The number of cached positions of each layer, None of layers that cache none."""
    held = [getattr(layer, "keys", None) for layer in getattr(cache, "layers", ())]
    return [None if keys is None else keys.shape[-2] for keys in held]


def cache_tensors(cache: Any) -> list[dict[str, torch.Tensor]]:
    """What each layer caches, by name: `..keys` and `values` [B, ..., length, D], and `.._states` of other shapes."""
    result = []
    for layer in getattr(cache, "layers", ()):
        tensors = {name: getattr(layer, name, None) for name in ("keys", "values", "indexer_keys", "idx_keys")}
        for name in ("conv_states", "recurrent_states"):
            tensors |= {f"{number} {name}": state for number, state in getattr(layer, name, {}).items()}
        result.append({name: tensor for name, tensor in tensors.items() if tensor is not None})
    return result

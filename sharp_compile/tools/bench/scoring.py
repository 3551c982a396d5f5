"""A decoder layer, and what `sharp` does in it (scoring, selecting, gathering) by itself, to be timed beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding, rotate_half

from sharp_compile.kernels.keep import keep_counts, keep_positions
from sharp_compile.kernels.multi_gather import multi_gather
from sharp_compile.options import Config
from sharp_compile.selector_registry import find_rule
from sharp_compile.selectors import Context
from sharp_compile.selectors.context import among

_TEXT, _TOKENS_OF_FRAME = 32, 196


def layer_and_selection(
    config: Qwen2Config, tokens: int, moves: bool, options: Mapping[str, Any], dtype: torch.dtype, device: str
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return both, compiled by Inductor with random weights, as functions without arguments.

    Args:
        config: the decoder of which it is one layer.
        tokens: S, 32 of them text, the others visual: frames of 196.
        moves: whether the frames differ; else they are near copies, and the deduplication walks through all tokens.
        options: those of the backend.
        dtype: of weights and states.
        device: where they run.
    """
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    width = config.hidden_size // heads
    frame = torch.arange(tokens) % _TOKENS_OF_FRAME
    hidden = torch.randn(1, tokens, config.hidden_size)
    unrotated = torch.randn(1, kv_heads, tokens, width)
    if not moves:
        hidden = hidden[:, frame] + 0.05 * hidden
        unrotated = unrotated[:, :, frame] + 0.05 * unrotated
    hidden, unrotated, query = (
        each.to(dtype=dtype, device=device) for each in (hidden, unrotated, torch.randn(1, heads, tokens, width))
    )
    with torch.device(device):
        layer = Qwen2DecoderLayer(config, 0).to(dtype).eval()
        cos, sin = Qwen2RotaryEmbedding(config)(hidden, torch.arange(tokens)[None])
    is_visual = torch.zeros(1, tokens, dtype=torch.bool, device=device)
    is_visual[:, _TEXT // 2 : tokens - _TEXT // 2] = True
    frame = ((is_visual.cumsum(1) - 1) // _TOKENS_OF_FRAME).where(is_visual, -1)
    parsed = Config.parse(options)
    chosen, kept = find_rule(parsed), _TEXT + parsed.cuts[0].kept(tokens - _TEXT)

    def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return keys * cos[:, None] + rotate_half(keys) * sin[:, None]

    def select(
        query: Tensor, unrotated: Tensor, hidden: Tensor, is_visual: Tensor, frame: Tensor, cos: Tensor, sin: Tensor
    ) -> list[Tensor]:
        key = rotate(unrotated, cos, sin)
        padding = torch.zeros_like(is_visual)
        kinds = is_visual, padding, padding
        state = among(query), heads, key, unrotated, hidden, is_visual, padding, frame, None, None
        counts = keep_counts(*kinds, is_visual.sum(1), kept)
        context = Context(*state, kept, counts.visual, 1, lambda k: rotate(k, cos, sin))
        scores = chosen.score(context)
        assert isinstance(scores, Tensor)  # a pair from rules that merge tokens
        positions = keep_positions(scores, *kinds, counts, kept)
        return multi_gather([value[:, None] for value in (hidden, cos, sin)], positions)

    whole, selection = torch.compile(layer), torch.compile(select)
    return (
        lambda: whole(hidden, position_embeddings=(cos, sin)),
        lambda: selection(query, unrotated, hidden, is_visual, frame, cos, sin),
    )

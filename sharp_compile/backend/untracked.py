"""Prompts that may have visual tokens which no graph shows: they came merged, or code that ran eagerly merged them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph

from .. import report
from ..integrations.transformers import prompt
from ..passes.analysis.attention import find_attention
from ..passes.analysis.decoder import find_decoder, holds_decoder
from ..passes.analysis.origins import reads_data_beside
from ..passes.errors import CannotPrune
from ..passes.fx.nodes import is_hidden_states
from ..visual_annotation import annotated_tokens

MERGED = (
    "visual features were injected by code that Dynamo ran eagerly, so that no graph shows where they are; "
    "sharp_compile.compile(model) tells it, or call the model inside sharp_compile.visual_tokens(is_visual)"
)
GIVEN = (
    "the prompt comes as embeddings, so that no graph shows whether it has visual tokens; if it has, call the model "
    "inside sharp_compile.visual_tokens(is_visual)"
)
BESIDE = "the decoder reads visual features by cross-attention: none of its tokens is visual, there is nothing to prune"


class UntrackedTokens:
    """Looks, call by call, for visual tokens that a graph which injects none may have."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def reason(self, inputs: Sequence[Any]) -> str | None:
        """What is to be said of a call on `inputs`; None where nothing is, or was already since the last reset."""
        return _once(self._reason(inputs))

    def beside(self) -> str | None:
        """Return the same of a graph that looks up the embeddings of its text itself."""
        return _once(BESIDE if prompt.has_pixels() and self._reads_beside else None)

    def _reason(self, inputs: Sequence[Any]) -> str | None:
        hidden = [value for value in inputs if isinstance(value, Tensor) and _is_hidden(value)]
        shapes = [value.shape[:2] for value in hidden]
        if shapes and prompt.is_prompt_with_pixels(inputs) and self._holds_layers:
            return MERGED
        if not shapes or annotated_tokens() is not None or not self._holds_decoder:
            return None
        given = list(_given())
        ids = [value for value in given if value.ndim == 2 and not _is_float(value) and value.shape[1] > 1]
        data = [value for value in given if _is_float(value) and value.ndim > 1 and not _is_mask(value, shapes)]
        if any(_is_hidden(value) and value.shape[:2] in shapes for value in data):
            return GIVEN
        if not ids:
            return None
        merged = any(value.shape in shapes for value in ids) or self._is_causal
        return MERGED if data and merged else None

    @functools.cached_property
    def _holds_decoder(self) -> bool:
        return holds_decoder(self._graph)

    @functools.cached_property
    def _holds_layers(self) -> bool:
        """Whether a decoder, or a part of one that Dynamo cut into several graphs, reads what comes in."""
        try:
            inputs = [node for node in self._graph.find_nodes(op="placeholder") if is_hidden_states(node)]
            return any(find_decoder(self._graph, node) is not None for node in inputs)
        except CannotPrune:
            return True

    @functools.cached_property
    def _is_causal(self) -> bool:
        return sum(attention.causal for attention in find_attention(self._graph)) > 1

    @functools.cached_property
    def _reads_beside(self) -> bool:
        return reads_data_beside(self._graph)


def _once(reason: str | None) -> str | None:
    return None if any(graph_report.reason == reason for graph_report in report.seen()) else reason


def _given() -> Iterator[Tensor]:
    """Yield the tensors that the outermost call of a module, or of a compiled function, was given."""
    frame = sys._getframe()
    given: list[Tensor] = []
    while frame.f_back is not None:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).startswith("torch."):
            args, kwargs = frame.f_locals.get("args"), frame.f_locals.get("kwargs")
            if isinstance(args, tuple) and isinstance(kwargs, dict):
                tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
                given = tensors or given
    yield from given


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point()


def _is_hidden(value: Tensor) -> bool:
    return value.ndim == 3 and value.is_floating_point() and value.shape[1] > 1


def _is_mask(value: Tensor, shapes: Sequence[Any]) -> bool:
    """Return whether a tensor has a number for each token, or for each pair of them."""
    lengths = [shape[1] for shape in shapes]
    return value.shape in shapes or (value.ndim > 2 and value.shape[-1] in lengths and value.shape[-2] in (1, *lengths))

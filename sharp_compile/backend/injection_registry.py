"""Where embeddings that one graph hands to the next hold visual features.

A graph that injects features and has no decoder returns, beside the embeddings, which of their tokens are visual; its
run publishes that for the tensor itself (``tensor_records``). The graph that takes this tensor finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..passes.analysis.frames import emit_frames, find_frames
from ..passes.analysis.injection import Injection, emit_masks, injected_elements, visual_mask
from ..passes.errors import CannotPrune
from ..passes.fx.emit import Emitter
from ..passes.fx.nodes import arguments
from ..tensor_records import TensorRecords
from ..visual_annotation import annotated_tokens


@dataclass
class InjectionRecord:
    """Visual features in a tensor of embeddings.

    ``frame`` is ``[B, S]`` int64, -1 where a token is not visual; ``elements`` the number of feature
    elements injected in all rows. ``read`` is for who finds the record to set: a decoder has read the embeddings.
    """

    frame: Tensor
    elements: int
    read: bool = False


class InjectionRegistry:
    """The tensors that hold injected features and are alive."""

    def __init__(self) -> None:
        self._records: TensorRecords[InjectionRecord] = TensorRecords()

    def publish(self, embeddings: Tensor, frame: Tensor, elements: int, never_read: Callable[[], None]) -> None:
        """Remember where ``embeddings`` ``[B, S, C]`` holds features, for as long as it lives.

        ``never_read`` is called if it dies without a decoder's graph having read it.
        """

        def dropped(record: InjectionRecord) -> None:
            if not record.read:
                never_read()

        self._records.publish(embeddings, InjectionRecord(frame, elements), dropped)

    def find(self, inputs: Sequence[Any]) -> tuple[int, InjectionRecord] | None:
        """Return the place of the first of ``inputs`` that has a record, and that record; None where none has."""
        for place, value in enumerate(inputs if self._records else ()):
            record = self._records.find(value)
            if record is not None and value.shape[:2] == record.frame.shape:
                return place, record
        return None


registry = InjectionRegistry()


def find_annotated(inputs: Sequence[Any]) -> tuple[int, InjectionRecord] | None:
    """Return the place of the embeddings among the inputs of a graph, and what the caller says of them, if anything."""
    is_visual = annotated_tokens()
    if is_visual is None:
        return None
    for place, value in enumerate(inputs):
        is_hidden = isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()
        if is_hidden and value.shape[:2] == is_visual.shape:
            # Shapes follow from it: of a mask on a device, this waits. Graphs that inject features know it by theirs.
            visual = int(is_visual.sum())
            # No frame is known: the decoder's graph parts them where text is between.
            frame = is_visual.to(value.device).long() - 1
            return (place, InjectionRecord(frame, visual * value.shape[2])) if visual else None
    return None


def return_injection(emit: Emitter, injection: Injection, tokens_per_frame: int | None) -> int:
    """Let a graph that injects features, and has no decoder, return where they are as its last two results.

    Returns:
        The place of the embeddings among its results.

    Raises:
        CannotPrune: where it does not return them.
    """
    copy = emit.module
    output = copy.graph.output_node()
    outputs = list(arguments(output)[0])
    if injection.embeddings not in outputs:
        raise CannotPrune(
            "visual features are injected in this graph, but it has no decoder and does not return the embeddings "
            "as they are: the graph that reads them can't be told where they are"
        )
    with emit.before(output):
        injection = emit_masks(emit, injection)
        frames = find_frames(injection, None, tokens_per_frame, emit)
        is_visual = emit(visual_mask, *injection.masks)
        aux_outputs = [emit_frames(emit, frames, injection, is_visual), injected_elements(emit, injection)]
    output.args = ((*outputs, *aux_outputs),)
    copy.recompile()
    return outputs.index(injection.embeddings)


def publishing(
    compiled: Callable[..., Any], place: int, never_read: Callable[[], None]
) -> Callable[..., tuple[Any, ...]]:
    """Strip the last two results off a graph of ``return_injection``, and publish them for its result ``place``."""

    def run(*args: Any) -> tuple[Any, ...]:
        *results, frame, elements = compiled(*args)
        registry.publish(results[place], frame, int(elements), never_read)
        return tuple(results)

    return run

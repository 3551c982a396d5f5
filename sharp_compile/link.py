"""What one graph tells the next about the tensors that it hands over.

Dynamo often breaks between the line that injects visual features and the decoder that reads them, and again between
the decoder and the head. A graph behind a break takes as an input what the one before returned: the very same tensor
object. So a record that is kept by the object's identity reaches it.

What is published:
    after each run, for tensors that a graph returned: where embeddings hold visual features (`Link`), or which
    tokens they were shortened to (`Shortened`).
What may be relied on:
    `Records.find` returns what was published for exactly this tensor object, if it still holds what it held then.
What is checked at every call:
    the object's identity (by a weak reference, so that a freed tensor's address can't be mistaken) and its version
    counter: a tensor that was written into since has no record.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")


class Records(Generic[Record]):
    """Records of the tensors that are alive."""

    def __init__(self) -> None:
        self._records: dict[int, tuple[weakref.ref[Tensor], int | None, Record]] = {}
        # Reentrant: the garbage collector may run inside of `publish`, and tell `forget` of another tensor.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._records)

    def publish(self, tensor: Tensor, record: Record, dropped: Callable[[Record], None] | None = None) -> None:
        """Remembers a record of `tensor` for as long as it lives, and hands it to `dropped` when it dies."""
        key = id(tensor)

        def forget(reference: weakref.ref[Tensor]) -> None:
            with self._lock:
                current = self._records.get(key)
                is_its = current is not None and current[0] is reference
                gone = self._records.pop(key)[2] if is_its else None
            if gone is not None and dropped is not None:
                dropped(gone)

        with self._lock:
            self._records[key] = (weakref.ref(tensor, forget), _version(tensor), record)

    def find(self, value: Any) -> Record | None:
        """The record of a tensor; None where it has none, and for all that is no tensor."""
        entry = self._records.get(id(value))
        if entry is None or not isinstance(value, Tensor) or entry[0]() is not value or entry[1] != _version(value):
            return None
        return entry[2]


@dataclass
class Link:
    """Visual features in a tensor of embeddings.

    ``frame`` is ``[B, S]`` int64, -1 where a token is not visual; ``elements`` the number of feature
    elements injected in all rows. ``read`` is for who finds the link to set: a decoder has read the embeddings.
    """

    frame: Tensor
    elements: int
    read: bool = False


class Links:
    """The tensors that hold injected features and are alive."""

    def __init__(self) -> None:
        self._records: Records[Link] = Records()

    def publish(self, embeddings: Tensor, frame: Tensor, elements: int, never_read: Callable[[], None]) -> None:
        """Remembers where `embeddings` ``[B, S, C]`` holds features, for as long as it lives.

        `never_read` is called if it dies without a decoder's graph having read it.
        """

        def dropped(link: Link) -> None:
            if not link.read:
                never_read()

        self._records.publish(embeddings, Link(frame, elements), dropped)

    def find(self, inputs: Sequence[Any]) -> tuple[int, Link] | None:
        """The place of the first of `inputs` that is linked, and its link; None where none is."""
        for place, value in enumerate(inputs if self._records else ()):
            link = self._records.find(value)
            if link is not None and value.shape[:2] == link.frame.shape:
                return place, link
        return None


@dataclass(frozen=True)
class Shortened:
    """What a tensor that a pruned graph returned holds.

    ``kept`` are the ``[B, S']`` positions that it was shortened to, of ``length`` S; ``axis`` is its token axis and
    ``batch_axis`` that of the rows. ``is_full`` says that it was expanded to S again.
    """

    kept: Tensor
    length: int
    axis: int
    batch_axis: int | None
    is_full: bool = False


shortened: Records[Shortened] = Records()
"""The tensors that pruned graphs returned and are alive."""

MARK = "_kept_positions"
"""The attribute by which code that Dynamo traces knows the ``[B, S']`` positions of router logits ``[B * S', E]``."""


def _version(value: Tensor) -> int | None:
    """The number of writes into a tensor; tensors made in inference mode do not count them."""
    return None if value.is_inference() else value._version


def carrier(elements: int, like: Tensor) -> Tensor:
    """A tensor whose size is `elements`, without memory for them: a length that a graph sees as a shape."""
    return torch.empty((), dtype=torch.bool, device=like.device).expand(elements)

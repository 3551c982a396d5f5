"""Records of tensors that one graph hands to the next, kept by the tensor's identity.

Dynamo often breaks between the line that injects visual features and the decoder that reads them, and again between
the decoder and the head. A graph after a break takes as an input what the one before returned: the very same tensor
object. So a record that is kept by the object's identity reaches it.

What is published:
    after each run, for tensors that a graph returned: where embeddings hold visual features
    (``backend.injection_registry``), or which tokens they were shortened to (``Shortened``).
What may be relied on:
    ``TensorRecords.find`` returns what was published for exactly this tensor object, if it still holds what it held.
What is checked at every call:
    the object's identity (by a weak reference, so that a freed tensor's address can't be mistaken) and its version
    counter: a tensor that was written into since has no record.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")


class TensorRecords(Generic[Record]):
    """Records of the tensors that are alive."""

    def __init__(self) -> None:
        self._records: dict[int, tuple[weakref.ref[Tensor], int | None, Record]] = {}
        # Reentrant: the garbage collector may run inside of `publish`, and tell `forget` of another tensor.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._records)

    def publish(self, tensor: Tensor, record: Record, dropped: Callable[[Record], None] | None = None) -> None:
        """Remember a record of ``tensor`` for as long as it lives, and hand it to ``dropped`` when it dies."""
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
        """Return the record of a tensor; None where it has none, and for all that is no tensor."""
        entry = self._records.get(id(value))
        if entry is None or not isinstance(value, Tensor) or entry[0]() is not value or entry[1] != _version(value):
            return None
        return entry[2]


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


shortened: TensorRecords[Shortened] = TensorRecords()
"""The tensors that pruned graphs returned and are alive."""

KEPT_POSITIONS = "_kept_positions"
"""The attribute by which code that Dynamo traces knows the ``[B, S']`` positions of router logits ``[B * S', E]``."""


def as_size_tensor(size: int, like: Tensor) -> Tensor:
    """Return a tensor of that size on the device of ``like``, without memory: a number that a graph sees as a shape."""
    return torch.empty((), dtype=torch.bool, device=like.device).expand(size)


def _version(value: Tensor) -> int | None:
    """Return the number of writes into a tensor; tensors made in inference mode do not count them."""
    return None if value.is_inference() else value._version

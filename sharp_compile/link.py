"""What one graph tells the next: which embeddings hold visual features, and where.

Dynamo often breaks between the line that injects visual features and the decoder that reads them. The
decoder's graph then takes the embeddings as an input and can't show which of its positions are visual. The
injecting graph can, and hands over the very tensor object that the decoder's graph is called with.

What is published:
    the injecting graph publishes, after each run, for the tensor that it returns: the frame of each visual
    token ``[B, S]`` and how many feature elements were injected.
What may be relied on:
    `find` returns what was published for exactly this tensor object, if it still holds what it held then.
What is checked at every call:
    the object's identity (by a weak reference, so that a freed tensor's address can't be mistaken), its
    shape, and its version counter: a tensor that was written into since is not linked.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Link:
    """Visual features in a tensor of embeddings.

    ``frame`` is ``[B, S]`` int64, -1 where a token is not visual; ``elements`` the number of feature
    elements injected in all rows. ``read`` is for who finds the link to set: a decoder has read the embeddings.
    """

    frame: Tensor
    elements: int
    version: int | None
    read: bool = False


class Links:
    """The tensors that hold injected features and are alive."""

    def __init__(self) -> None:
        self._links: dict[int, tuple[weakref.ref[Tensor], Link]] = {}
        # Reentrant: the garbage collector may run inside of `publish`, and tell `forget` of another tensor.
        self._lock = threading.RLock()

    def publish(self, embeddings: Tensor, frame: Tensor, elements: int, never_read: Callable[[], None]) -> None:
        """Remembers where `embeddings` ``[B, S, C]`` holds features, for as long as it lives.

        `never_read` is called if it dies without a decoder's graph having read it.
        """
        key = id(embeddings)

        def forget(reference: weakref.ref[Tensor]) -> None:
            with self._lock:
                current = self._links.get(key)
                gone = self._links.pop(key)[1] if current is not None and current[0] is reference else None
            if gone is not None and not gone.read:
                never_read()

        with self._lock:
            link = Link(frame, elements, _version(embeddings))
            self._links[key] = (weakref.ref(embeddings, forget), link)

    def find(self, inputs: Sequence[Any]) -> tuple[int, Link] | None:
        """The place of the first of `inputs` that is linked, and its link; None where none is."""
        if not self._links:
            return None
        for place, value in enumerate(inputs):
            entry = self._links.get(id(value))
            if entry is None or not isinstance(value, Tensor) or entry[0]() is not value:
                continue
            link = entry[1]
            if value.shape[:2] == link.frame.shape and _version(value) == link.version:
                return place, link
        return None


def _version(value: Tensor) -> int | None:
    """The number of writes into a tensor; tensors made in inference mode do not count them."""
    return None if value.is_inference() else value._version


def carrier(elements: int, like: Tensor) -> Tensor:
    """A tensor whose size is `elements`, without memory for them: a length that a graph sees as a shape."""
    return torch.empty((), dtype=torch.bool, device=like.device).expand(elements)

"""What the gathers have to move on a GPU."""

from __future__ import annotations

from collections.abc import Sequence


def cost(batch: int, kept: int, values: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Return bytes to and from memory, and floating-point operations (none).

    Args:
        batch: B.
        kept: N.
        values: P, Q and the bytes of an element of each tensor.
    """
    return batch * kept * sum(8 + 2 * planes * width * element for planes, width, element in values), 0

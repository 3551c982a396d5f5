"""What received attention has to move and to multiply on a GPU."""

from __future__ import annotations

_KEYS = 128


def cost(batch: int, heads: int, kv_heads: int, rows: int, length: int, head_dim: int, element: int) -> tuple[int, int]:
    """Return bytes to and from memory, and floating-point operations of the matrix products, of both kernels.

    Args:
        batch: B.
        heads: H.
        kv_heads: Hkv.
        rows: T.
        length: S.
        head_dim: D.
        element: bytes of a number of queries and keys.
    """
    tiles = -(-length // _KEYS)
    keys = batch * kv_heads * length * head_dim * element
    queries = batch * heads * rows * head_dim * element
    partial = 4 * batch * heads * rows * tiles
    sums = 4 * batch * kv_heads * length
    # Each kernel reads keys and queries; the sums of tiles and of key heads are written and read once.
    moved = 2 * (keys + queries + partial + sums) + 4 * batch * length
    return moved, 2 * 2 * batch * heads * rows * length * head_dim

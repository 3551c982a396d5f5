"""What the deduplication has to move and to multiply on a GPU."""

from __future__ import annotations

_BLOCK = 512
_TILE = 128


def cost(length: int, features: int, walked: int, kept: int, element: int) -> tuple[int, int]:
    """Return bytes to and from memory, and floating-point operations of the matrix products, of one row.

    The kept tokens are taken to lie evenly in the walk. What a block needs is read from memory once: its
    vectors, and those of all tokens kept before it.

    Args:
        length: S, the tokens whose lengths are computed first.
        features: F.
        walked: how many candidates are walked.
        kept: how many of these are kept.
        element: bytes of a number.
    """
    vectors, products = length, 0
    for start in range(0, walked, _BLOCK):
        block = min(_BLOCK, walked - start)
        before = kept * start // walked
        vectors += block + before
        # Within the block: the tiles that hold a pair with an earlier candidate.
        products += block * before + block * (block + _TILE) // 2
    return vectors * features * element, 2 * features * products

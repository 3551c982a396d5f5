"""PyramidDrop (arXiv 2410.17247)."""

from torch import Tensor

from ..selector_registry import register_selector
from .context import Context
from .fastv import fastv


@register_selector("pyramiddrop", merges=False)
def pyramiddrop(ctx: Context) -> Tensor:
    """Return the attention from the last token of the instruction, mean over heads, at the end of each stage.

    The score is FastV's; the method is in the stages, which the option ``stages`` gives: the paper drops a fixed share
    of what is left at the end of each. Half of it, after a quarter, a half and three quarters of 32 layers, is
    ``[(7, 0.5), (15, 0.25), (23, 0.125)]``.

    Two differences. The authors' code asks the first layer after a cut, with the hidden states that would enter it;
    here the last layer before it is asked, which has its queries and keys at hand. And it numbers the positions anew
    after each cut, where kept tokens keep theirs here.

    Returns:
        ``[B, S]`` float32.
    """
    return fastv(ctx)

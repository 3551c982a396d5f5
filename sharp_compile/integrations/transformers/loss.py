"""The loss of transformers, for logits of a shortened sequence.

Behind a cut there are logits for S' positions, and labels for all S. The target of a position is the label behind it in
the whole sequence, pruned or not: so labels are shifted first, then taken at the kept positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import report

_IGNORED = -100


def install() -> None:
    """Lets the losses of language models take logits of fewer positions than there are labels."""
    from transformers.loss import loss_utils

    original = loss_utils.ForCausalLMLoss
    replaced = _with_labels_at_kept_positions(original)
    loss_utils.ForCausalLMLoss = replaced
    for name, loss in list(loss_utils.LOSS_MAPPING.items()):
        if loss is original:
            loss_utils.LOSS_MAPPING[name] = replaced


def _with_labels_at_kept_positions(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    kept_positions = torch._dynamo.disable(_kept_positions)

    @functools.wraps(loss)
    def of_kept(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        targets = kwargs.pop("shift_labels", None)
        whole = labels if targets is None else targets
        if whole is not None and logits.ndim == 3 and logits.shape[1] < whole.shape[1]:
            if targets is None:
                targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=_IGNORED)
            kept = kept_positions(logits.shape[0], logits.shape[1])
            targets = targets.to(kept.device).gather(1, kept)
        return loss(logits, labels, *args, **kwargs, **({} if targets is None else {"shift_labels": targets}))

    return of_kept


def _kept_positions(rows: int, length: int) -> Tensor:
    kept = report.latest_kept()
    if kept is None or kept.shape != (rows, length):
        raise ValueError(
            f"there are logits for {length} positions and more labels, and no graph was pruned just before to {length} "
            "positions: give labels of the positions that logits are computed for"
        )
    return kept

"""The losses of transformers, for logits of a shortened sequence.

After a cut there are logits for S' positions, and labels for all S. The target of a position is the label after it in
the whole sequence, pruned or not: so labels are shifted first, then taken at the kept positions.

Mostly both meet in a graph of ours, which sees to that (``passes.rewrite.tail``). Here they meet in code that Dynamo
breaks around, or that is not compiled. Logits that no pruned graph returned go to the losses as ever.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import patches
from ...tensor_records import Shortened, shortened

_IGNORED = -100
_SMOOTHING = "transformers.trainer_pt_utils"
_ABOUT = {
    "versions": patches.TRANSFORMERS,
    "why": "there are logits of S' positions, and labels of all S",
    "acts": "logits that a pruned graph returned",
}


def install() -> None:
    """Let the losses of language models take logits of a pruned graph with labels for the whole sequence."""
    from transformers.loss import loss_utils

    original = loss_utils.ForCausalLMLoss
    replaced = _with_labels_at_kept_positions(original)
    patches.replace(loss_utils, original.__name__, lambda _: replaced, **_ABOUT)
    for name, loss in list(loss_utils.LOSS_MAPPING.items()):
        if loss is original:
            target = f"{loss_utils.__name__}.LOSS_MAPPING[{name!r}]"
            patches.replace(loss_utils.LOSS_MAPPING, name, lambda _: replaced, target=target, **_ABOUT)


def install_late() -> None:
    """Do the same for the label smoothing of ``Trainer``, if that is loaded by now."""
    module = sys.modules.get(_SMOOTHING)
    smoother: Any = getattr(module, "LabelSmoother", None)
    if smoother is not None and not hasattr(smoother.__call__, "__wrapped__"):
        patches.replace(smoother, "__call__", _smoothing_at_kept_positions, **_ABOUT)


def _with_labels_at_kept_positions(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    find = torch._dynamo.disable(shortened.find)

    @functools.wraps(loss)
    def of_kept(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        targets = kwargs.get("shift_labels")
        whole = labels if targets is None else targets
        # Never so in a model that was not pruned: it would be an error.
        if whole is not None and logits.ndim == 3 and logits.shape[1] < whole.shape[1]:
            states = find(logits)
            if states is not None:
                targets = _shifted(labels, _IGNORED) if targets is None else targets
                kwargs["shift_labels"] = _at_kept(targets, states)
        return loss(logits, labels, *args, **kwargs)

    return of_kept


def _smoothing_at_kept_positions(smooth: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(smooth)
    def of_kept(
        self: Any, model_output: Any, labels: Tensor, shift_labels: bool = False, *args: Any, **kwargs: Any
    ) -> Tensor:
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        states = shortened.find(logits)
        if states is None or logits.ndim != 3 or labels.shape[1] == logits.shape[1]:
            return smooth(self, model_output, labels, shift_labels, *args, **kwargs)
        targets = _shifted(labels, self.ignore_index) if shift_labels else labels
        return smooth(self, {"logits": logits}, _at_kept(targets, states), False, *args, **kwargs)

    return of_kept


def _shifted(labels: Tensor, ignored: int) -> Tensor:
    """Return the label after each position, ``[B, S]``."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignored)


def _at_kept(targets: Tensor, states: Shortened) -> Tensor:
    return targets.to(states.kept.device).gather(1, states.kept)

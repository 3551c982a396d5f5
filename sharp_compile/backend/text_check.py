"""Checks that no row of a batch has more text than positions are kept of it, without a wait for the device."""

from __future__ import annotations

import threading
from collections import deque

import torch
from torch import Tensor


def too_much_text(text: Tensor, kept: int) -> str | None:
    """Return which row has more ``text`` tokens ``[B]`` than positions are ``kept`` of it; None where none has.

    Args:
        text: in host memory, where reading it is no wait; or on the meta device, where there is nothing to read.
        kept: how many positions a row keeps.
    """
    if text.is_meta:
        return None
    counts = text.numpy()
    row = int(counts.argmax())
    if counts[row] <= kept:
        return None
    return (
        f"row {row} of the batch has {counts[row]} text tokens, but only {kept} positions are kept: its visual "
        "tokens and padding are fewer than what is dropped of every row. The batch mixes videos with rows of "
        "little or no video; run those apart, or with a higher retention"
    )


class LateChecks:
    """The checks of runs whose text is still on its way from the device, oldest first."""

    def __init__(self) -> None:
        self._runs: deque[tuple[Tensor, torch.Event | None, int]] = deque()
        self._lock = threading.Lock()

    def add(self, text: Tensor, kept: int) -> None:
        """Start to copy the ``text`` tokens ``[B]`` of a run, of which ``kept`` positions are kept."""
        self._runs.append((*_to_host(text), kept))

    def check(self, wait: bool) -> None:
        """Check the runs whose text is there; all of them with ``wait``.

        Raises:
            ValueError: for a run with too much text in a row. Each is told of once.
        """
        with self._lock:
            while self._runs:
                text, arrived, kept = self._runs[0]
                if arrived is not None and not arrived.query():
                    if not wait:
                        return
                    arrived.synchronize()
                self._runs.popleft()
                if (reason := too_much_text(text, kept)) is not None:
                    raise ValueError(f"an earlier call has returned NaN for a row: {reason}")


def _to_host(text: Tensor) -> tuple[Tensor, torch.Event | None]:
    """Start to copy a tensor to host memory, and return an event that tells when it is there; None where it is now."""
    if text.device.type == "cpu":
        return text, None
    host = torch.empty_like(text, device="cpu", pin_memory=True).copy_(text, non_blocking=True)
    return host, torch.accelerator.current_stream(text.device).record_event()

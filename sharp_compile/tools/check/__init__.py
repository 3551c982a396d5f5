"""``sharp-compile check``: is the package right on this machine, and what does it bring there.

``run`` has the stages. ``kernels`` and ``families`` compare with what is right by definition, ``prefill`` measures what
``plan`` says, ``scoring`` and ``trace`` tell where the time goes. Each stage is a process of its own (``stage``), so
that a kernel that breaks the device, or a compilation that does not end, is told and costs nothing but itself.
"""

from __future__ import annotations


class CheckError(Exception):
    """The check can't be run as it was asked for; the message says why."""

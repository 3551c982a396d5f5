"""What code that Dynamo traces may ask about the compilation that it is traced for."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.exc import ShortenTraceback, UnspecializeRestartAnalysis

from ..options import Config
from . import ours

# Backends of others that hand their graphs to this one. Functions and objects of any kind: held, and known by identity.
_handing_over: list[Any] = []


@torch._dynamo.assume_constant_result
def traces_for_sharp() -> bool:
    """Return whether Dynamo traces the calling code for this backend.

    Ask ``torch.compiler.is_dynamo_compiling()`` first. Dynamo calls this while it traces and takes the answer for a
    constant: code is traced anew for each backend.
    """
    from torch._dynamo.eval_frame import innermost_backend
    from torch._dynamo.symbolic_convert import InstructionTranslator

    backend: Any = InstructionTranslator.current_tx().output.compiler_fn
    return _is_ours(innermost_backend(backend))


def setting_traced_for() -> Config | None:
    """Return the options of this backend if Dynamo traces for it; None if for another, or if options are bad."""
    from torch._dynamo.eval_frame import innermost_backend
    from torch._dynamo.symbolic_convert import InstructionTranslator

    backend: Any = InstructionTranslator.current_tx().output.compiler_fn
    try:
        return ours.setting_of(innermost_backend(backend))
    except ValueError:  # which is told of when the graph is compiled
        return None


def hands_over(backend: Any) -> bool:
    """Note that graphs of a backend come to this one.

    Args:
        backend: The one that Dynamo compiles with; None outside of Dynamo.

    Returns:
        Whether that was not known, so that code was traced as for any other.
    """
    if backend is None or _is_ours(backend):
        return False
    _handing_over.append(_function_of(backend))
    return True


def _is_ours(backend: Any) -> bool:
    if ours.is_ours(backend):
        return True
    function = _function_of(backend)
    return any(known is function for known in _handing_over)


def _function_of(backend: Any) -> Any:
    return getattr(backend, "compiler_fn", backend)


class TraceAgain(UnspecializeRestartAnalysis, ShortenTraceback):
    """Raised by a backend: has Dynamo trace the frame again, since the code that it traced has changed."""

    def __init__(self, reason: str) -> None:
        ShortenTraceback.__init__(self, reason, first_useful_frame=None)
        self.restart_reason = reason

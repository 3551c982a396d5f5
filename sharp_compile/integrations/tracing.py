"""What code that Dynamo traces may ask about the compilation that it is traced for."""

from __future__ import annotations

from typing import Any

import torch


@torch._dynamo.assume_constant_result
def traces_for_sharp() -> bool:
    """Whether Dynamo traces the calling code for this backend.

    Ask ``torch.compiler.is_dynamo_compiling()`` first. Dynamo calls this while it traces and takes the answer for a
    constant: code is traced anew for each backend.
    """
    from torch._dynamo.eval_frame import innermost_backend
    from torch._dynamo.symbolic_convert import InstructionTranslator

    from ..backend import setting_of

    backend: Any = InstructionTranslator.current_tx().output.compiler_fn
    try:
        return setting_of(innermost_backend(backend)) is not None
    except ValueError:  # a bad option, which is told of when the graph is compiled
        return True


class TraceAgain(torch._dynamo.exc.UnspecializeRestartAnalysis, torch._dynamo.exc.ShortenTraceback):
    """Raised by a backend: has Dynamo trace the frame again, since the code that it traced has changed."""

    def __init__(self, reason: str) -> None:
        torch._dynamo.exc.ShortenTraceback.__init__(self, reason, first_useful_frame=None)
        self.restart_reason = reason

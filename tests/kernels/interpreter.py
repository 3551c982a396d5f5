"""Runs Triton kernels on the CPU, with Triton's interpreter, in a process that compiles them as well.

TRITON_INTERPRET would have to be set before Triton is imported, and then nothing in the process can be compiled.
"""

import triton.experimental.gluon  # noqa: F401 - the interpreter imports it, which fails once functions are replaced
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction


class Interpreted(interpreter.InterpretedFunction):
    def __call__(self, *args, **kwargs):
        # A call from a kernel. The base class replaces triton.language here, too, but never puts it back.
        scope = interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        finally:
            scope.restore()


def interpret(monkeypatch, *modules):
    """Lets all kernels of `modules`, and the parts of Triton written in Triton, be interpreted."""
    for module in (tl, tl.standard, *modules):
        for name, value in vars(module).copy().items():
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, Interpreted(value.fn))
        if hasattr(module, "wrap_triton"):  # which takes no interpreted function before torch 2.13
            monkeypatch.setattr(module, "wrap_triton", lambda kernel: kernel)
    dot = interpreter.InterpreterBuilder.create_dot

    def dot_of_bfloat16_too(self, a, b, *others):
        # The interpreter keeps bfloat16 as bits in uint16, and would multiply these.
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot_of_bfloat16_too)

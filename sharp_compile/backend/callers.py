"""What is on the stack around a graph: the compiled call that it runs in, and who reads what it returns."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import _TorchDynamoContext

from ..integrations import transformers

_TORCH = str(Path(torch.__file__).parent)
# Ours, and the decorators of Python itself.
_PYTHON = sysconfig.get_path("stdlib")
_OTHERS = (_TORCH, str(Path(__file__).parents[1]), f"{_PYTHON}/contextlib", f"{_PYTHON}/functools")
_RESUMED = "torch_dynamo_resume_in"  # what Dynamo names the rest of a function after a break, which that calls
# The function that `torch.compile` returns, whatever it wraps.
_COMPILE_WRAPPER = next(
    (
        constant
        for constant in _TorchDynamoContext.__call__.__code__.co_consts
        if isinstance(constant, CodeType) and constant.co_name == "compile_wrapper"
    ),
    None,
)


def active_backend() -> Any:
    """The backend, with its options, of the innermost `torch.compile` that this thread is in; None outside of all."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _COMPILE_WRAPPER:
            callback = frame.f_locals["self"].callback
            return _innermost(callback) if callable(callback) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def goes_on(broke: bool) -> bool:
    """Return whether code of the compiled call that is running reads what the graph returns, before the user does.

    That is code after Dynamo's break, and that of modules around the one that holds the graph. A module of
    transformers without a head only hands its decoder's states on.

    Args:
        broke: whether Dynamo ended the graph by a break, so that its own function goes on.
    """
    frames = _frames_of_call()
    holder = _module(frames[0]) if frames else None
    if broke and frames and not transformers.hands_states_on(holder):
        return True
    return any(
        _module(frame) is not holder and not transformers.hands_states_on(_module(frame)) for frame in frames[1:]
    )


def _frames_of_call() -> list[FrameType]:
    """The frames of the model's code from the one that called the graph to the compiled call, innermost first."""
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if frame.f_code is _COMPILE_WRAPPER:
            return frames
        if not file.startswith(_OTHERS) and not frame.f_code.co_name.startswith(_RESUMED):
            frames.append(frame)
        frame = frame.f_back
    return []


def _module(frame: FrameType) -> nn.Module | None:
    """Return the module that a frame runs a method of, or a decorator around one; None for other functions."""
    names = frame.f_code.co_varnames
    first = frame.f_locals.get(names[0]) if names else None
    first = first[0] if isinstance(first, tuple) and first else first
    return first if isinstance(first, nn.Module) else None


def _innermost(backend: Any) -> Any:
    """Return the backend that Dynamo's wrappers of it, one in the other, call in the end."""
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend = backend._torchdynamo_orig_backend
    return backend

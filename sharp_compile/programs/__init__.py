"""Pruned models as programs (``torch.export.ExportedProgram``), which run without this package and its models' code.

    prefill = sharp_compile.export(model, retention=0.1, **inputs)
    step = sharp_compile.export_decode(model, prefill)

Dynamo traces the decoder for the backend, and the pruned graph is kept (``capture``); what makes features of pixels
stands in front of it (``prefill``), numbers that it reads out of inputs being checked (``known_values``). A step is the
model's own forward on a cache that holds what the pruned prefill left (``decode``).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

from torch import SymInt, Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..options import DEFAULTS, Config
from ..passes.errors import CannotPrune
from ..sharp_options import nearest
from ..short_repr import short_repr
from ..unwrap import unwrap
from .capture import Captured
from .decode import CACHES, export_step
from .formats import output_names, to_onnx, to_openvino
from .prefill import export_prefill

__all__ = ["export", "export_decode", "output_names", "to_onnx", "to_openvino"]

# Options that say how a graph is compiled or what else is done with it: a program is what others compile.
_OF_COMPILATION = ("inner", "inductor", "on_skip", "reuse_layers", "flash_attention")

_captured: weakref.WeakKeyDictionary[ExportedProgram, Captured] = weakref.WeakKeyDictionary()


def export(model: nn.Module, *, dynamic: bool = True, **given: Any) -> ExportedProgram:
    """Export the pruned prefill of a model as a program with the model's weights.

    The tensors among the inputs are the program's inputs, by their names; other arguments are fixed. Where the model
    makes rotary positions of several axes in Python, token by token (Qwen2.5-VL), ``position_ids`` ``[axes, B, S]`` is
    an input of the program too. Numbers that the model reads out of inputs (``video_grid_thw``, which images are real)
    are those of the example: the program checks them.

    The program returns a dict of tensors, all contiguous:

    * ``logits`` ``[B, S', vocabulary]``, or of what ``logits_to_keep`` asks for; ``last_hidden_state`` ``[B, S', C]``
      by the same name, for a model without a head.
    * ``kept`` ``[B, S']`` int64: the positions that layers after the cut hold; of several cuts the last one, those
      before it are ``kept_1`` and so on.
    * ``key_0``, ``value_0`` ``[B, H, N, D]`` and so on: the cache, N being S up to the cut, and S' after it; other
      states by the names that layers of the cache have for them.
    * ``attention_mask`` ``[B, S]``: the given one, or ones.
    * ``next_position`` ``[B]`` or ``[axes, B]``: of the next token, where ``position_ids`` is an input.

    All but ``logits`` is what ``export_decode``'s program takes.

    Args:
        model: A model in ``eval`` mode.
        dynamic: Whether the length may vary, and the number of rows and of frames where the model does not fix them. An
            example of one row is a program for one row, as ever in ``torch.export``.
        given: The options of the backend that are not about compiling, and an example of the keyword arguments of the
            model's ``forward``.

    Returns:
        The program. It holds operators of ATen only.

    Raises:
        ValueError: For a bad option or argument, before anything is traced.
        CannotPrune: Where the model can't be pruned for these inputs or can't be exported, with the reason: a program
            is never an unpruned one.
    """
    if not isinstance(dynamic, bool):
        raise ValueError(f"dynamic={short_repr(dynamic)}: must be True or False")
    options = {name: value for name, value in given.items() if name in DEFAULTS}
    inputs = {name: value for name, value in given.items() if name not in DEFAULTS and value is not None}
    _check_options(options)
    model = unwrap(model)
    _check_inputs(model, inputs)
    program, captured = export_prefill(model, inputs, options, dynamic)
    if dynamic:
        _check_length_varies(program)
    _captured[program] = captured
    return program


def export_decode(model: nn.Module, prefill: ExportedProgram, *, dynamic: bool = True) -> ExportedProgram:
    """Export a step of decoding on what a program of ``export`` returns.

    The step takes ``input_ids`` ``[B, 1]``, the next token of each row, and all that the prefill returned but the
    logits. It returns the same names, one position longer, and the logits ``[B, 1, vocabulary]``::

        state = prefill(**inputs)
        while ...:
            token = state.pop("logits")[:, -1:].argmax(-1)
            state = step(input_ids=token, **state)

    Args:
        model: The model that ``prefill`` was exported from.
        prefill: What ``export`` returned in this process.
        dynamic: Whether lengths may vary; without it, it is one step on the caches of the example.

    Returns:
        The program.

    Raises:
        ValueError: For a program of another origin, or one that returns no cache.
        CannotPrune: Where the step can't be exported, with the reason.
    """
    captured = _captured.get(prefill)
    if captured is None:
        raise ValueError("prefill must be a program as sharp_compile.export returned it, in this process")
    if captured.cache is None:
        raise ValueError("the prefill returns no cache: there is nothing to decode with")
    assert prefill.example_inputs is not None
    _, inputs = prefill.example_inputs
    # Clones: that an example is a view of another tensor would be a guard of the program.
    outputs = prefill.module()(**inputs)
    state = {name: value.detach().clone() for name, value in outputs.items() if name != "logits"}
    return export_step(unwrap(model), captured.cache, state, dynamic)


def _check_options(options: Mapping[str, Any]) -> None:
    for name in _OF_COMPILATION:
        if name in options:
            raise ValueError(f"option {name}={short_repr(options[name])}: a program is not compiled; leave it out")
    Config.parse(options)


def _check_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    taken = inspect.signature(model.forward).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    for name, value in inputs.items():
        if name in CACHES:
            raise ValueError(f"{name}={short_repr(value)}: the program begins with an empty cache; leave it out")
        if name not in taken and not (takes_any and isinstance(value, Tensor)):
            raise ValueError(
                f"{name}={short_repr(value)}: neither an option nor an argument of the model's forward"
                f"{nearest(name, (*DEFAULTS, *taken))}"
            )
        if not isinstance(value, Tensor) and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            raise ValueError(f"{name}={short_repr(value)}: tensors inside of others can't be inputs of a program")
    if not any(isinstance(value, Tensor) for value in inputs.values()):
        raise ValueError("export needs an example of the inputs of a forward call: input_ids, pixels and so on")
    if model.training:
        raise ValueError("the model is in training mode, call model.eval() first")


def _check_length_varies(program: ExportedProgram) -> None:
    """Refuse a program that is for one length only.

    Raises:
        CannotPrune: If it is.
    """
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in ("input_ids", "inputs_embeds"):
            length = node.meta["val"].shape[1]
            if not isinstance(length, SymInt):
                raise CannotPrune(
                    f"the model fixes the length of the sequence to {length}: export it for that, with dynamic=False"
                )

"""Modules as ``torch.export`` takes them: every input a keyword of its own, every size that may vary told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from ..passes.errors import CannotPrune

_CONTIGUOUS = {"memory_format": torch.contiguous_format}
_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Program(nn.Module):
    """A function of named tensors, over the weights of a model."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], run: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.model = model
        self.forward = _with_keywords(names, run)


def _with_keywords(names: tuple[str, ...], run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run``, with the keywords in its signature: ``torch.export`` names inputs by it."""

    def forward(**inputs: Any) -> Any:
        return run(inputs)

    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, keyword) for name in names])  # type: ignore[attr-defined]
    return forward


def to_program(
    module: Program, inputs: Mapping[str, Tensor], varying: Mapping[str, Collection[int]]
) -> ExportedProgram:
    """Export a module.

    Args:
        module: What to export.
        inputs: An example.
        varying: By the name of an input, its dimensions that may vary, if the module does not fix them.

    Raises:
        CannotPrune: Where ``torch.export`` can't trace it.
    """
    # torch.export takes a size of one for fixed, and says so of each.
    dims = {name: [dim for dim in varying.get(name, ()) if value.shape[dim] != 1] for name, value in inputs.items()}
    shapes = {name: dict.fromkeys(dims[name], Dim.AUTO) for name in inputs}
    try:
        with torch.no_grad():
            program = torch.export.export(module, (), dict(inputs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        what = str(error).strip().partition("\n")[0]
        raise CannotPrune(f"torch.export can't trace the model: {type(error).__name__}: {what}") from error
    _drop_empty(program)
    _drop_unused(program)
    return program


def _drop_unused(program: ExportedProgram) -> None:
    """Leave out of a program the weights and constants that it does not read."""
    graph, signature = program.graph_module.graph, program.graph_signature
    graph.eliminate_dead_code()
    unused = {node.name: node for node in graph.find_nodes(op="placeholder") if not node.users}
    for spec in [each for each in signature.input_specs if each.kind in _STORED and each.arg.name in unused]:
        graph.erase_node(unused[spec.arg.name])
        signature.input_specs.remove(spec)
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    program.graph_module.recompile()


def _drop_empty(program: ExportedProgram) -> None:
    """Leave empty tensors out of concatenations: a cache begins with some, of one dimension, that others refuse."""
    graph = program.graph_module.graph
    for node in [each for each in graph.nodes if each.target is torch.ops.aten.cat.default]:
        parts = [part for part in node.args[0] if tuple(part.meta["val"].shape) != (0,)]
        if len(parts) == 1:
            # A copy, as before: what comes after was traced with its strides.
            with graph.inserting_before(node):
                copied = graph.call_function(torch.ops.aten.clone.default, (parts[0],), _CONTIGUOUS)
            copied.meta = dict(node.meta)
            node.replace_all_uses_with(copied)
        elif parts:
            node.args = (parts, *node.args[1:])
    for spec, node in zip(program.graph_signature.output_specs, graph.output_node().args[0], strict=True):
        spec.arg.name = node.name

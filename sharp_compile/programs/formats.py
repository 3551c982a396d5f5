"""Programs for other runtimes: ONNX and OpenVINO, by the exporters of torch and of OpenVINO.

What these exporters, or the runtimes, lack is written in other operators first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

_CHECKS = (
    *(aten._assert_async.msg, aten._assert_async.default, aten._assert_scalar.default),
    *(
        aten._assert_tensor_metadata.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    ),
)


def to_onnx(program: ExportedProgram) -> Any:
    """Convert a program to ONNX (needs the extra ``export``).

    Args:
        program: What ``export`` or ``export_decode`` returned.

    Returns:
        A ``torch.onnx.ONNXProgram``, to be saved by its ``save``. Inputs have the program's names; outputs too, with
        ``out_`` in front: names of ONNX are unique. Checks of inputs are left out.

    Raises:
        torch.onnx.errors.OnnxExporterError: For an operator that ONNX has no form of.
    """
    names = [f"out_{name}" for name in output_names(program)]
    plain = _rewritten(program, {aten.sort.stable: _unstable, aten.masked_fill.Scalar: _fill_booleans})
    return torch.onnx.export(plain, dynamo=True, output_names=names, verbose=False)


def to_openvino(program: ExportedProgram) -> Any:
    """Convert a program to OpenVINO (needs the extra ``export``).

    Args:
        program: What ``export`` or ``export_decode`` returned.

    Returns:
        An ``openvino.Model``. Inputs have the program's names, outputs its order (``output_names``). Checks of inputs
        are left out.

    Raises:
        openvino.frontend.OpConversionFailure: For an operator that OpenVINO has no form of.
    """
    import openvino

    return openvino.convert_model(_rewritten(program, {}))


def output_names(program: ExportedProgram) -> list[str]:
    """Return the names of a program's outputs, in order."""
    spec = program.call_spec.out_spec
    assert spec is not None
    return list(spec.context)


def _rewritten(program: ExportedProgram, rules: dict[Any, Callable[[Graph, Node], Node | None]]) -> ExportedProgram:
    """Return a copy without checks, in which nodes are written as the rules for their operators have it."""
    copied = copy.copy(program)
    copied._graph_module = copy.deepcopy(program.graph_module)
    for module in copied.graph_module.modules():
        if isinstance(module, GraphModule):
            _erase(module.graph, [node for node in module.graph.nodes if node.target in _CHECKS])
            for node in [each for each in module.graph.nodes if each.target in rules]:
                with module.graph.inserting_before(node):
                    other = rules[node.target](module.graph, node)
                if other is not None:
                    other.meta = dict(node.meta)
                    node.replace_all_uses_with(other)
                    module.graph.erase_node(node)
            module.graph.eliminate_dead_code()
            module.recompile()
    return copied


def _erase(graph: Graph, nodes: Iterable[Node]) -> None:
    for node in nodes:
        graph.erase_node(node)


def _unstable(graph: Graph, node: Node) -> Node:
    """A sort in ONNX puts the lower of equal ones first, whatever is asked for."""
    values, options = node.args[0], node.kwargs
    return graph.call_function(aten.sort.default, (values, options.get("dim", -1), options.get("descending", False)))


def _fill_booleans(graph: Graph, node: Node) -> Node | None:
    """ONNX Runtime has no ``Where`` of booleans."""
    values, mask, fill = node.args
    if not isinstance(values, Node) or values.meta["val"].dtype != torch.bool:
        return None
    if fill:
        return graph.call_function(aten.logical_or.default, (values, mask))
    seen = graph.call_function(aten.logical_not.default, (mask,))
    seen.meta = {"val": mask.meta["val"]} if isinstance(mask, Node) else {}
    return graph.call_function(aten.logical_and.default, (values, seen))

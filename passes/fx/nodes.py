"""What the passes ask of single FX nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule, _make_graph_module, _use_lazy_graph_module
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from .sizes import hint
from .tensor_subclasses import rewrapped

IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
"""Assignments such as ``a += b``, which write into a tensor, and what gives the same as a new one."""


def example_value(argument: Any) -> Any:
    """Return the value that Dynamo traced a node with, None if it recorded none; anything but a node as it is."""
    return argument.meta.get("example_value") if isinstance(argument, Node) else argument


def example_tensor(argument: Any) -> Tensor | None:
    """Return the tensor that Dynamo traced a node with; None for all that is no tensor."""
    value = example_value(argument)
    return value if isinstance(argument, Node) and isinstance(value, Tensor) else None


ONE_NUMBER = ((), (1,))
"""The shapes of a tensor of one number, which has no places that would depend on how many tokens there are."""


def is_one_number(argument: Any) -> bool:
    """Return whether a node holds a tensor of one number."""
    tensor = example_tensor(argument)
    return tensor is not None and tensor.shape in ONE_NUMBER


def fake_mode(values: Any) -> FakeTensorMode:
    """Return the mode of the example tensors among ``values``.

    Dynamo's tensors of one graph share one, but it need not be the mode of its tracing context, which
    ``detect_fake_mode`` would give.
    """
    return next(leaf.fake_mode for leaf in tree_leaves(values) if isinstance(leaf, FakeTensor))


@contextmanager
def on_fakes(values: Any) -> Iterator[FakeTensorMode]:
    """Run operators on the example tensors among ``values``, without gradients, and yield their mode.

    Operators of C++ take no symbolic sizes: the Python dispatcher replaces those that need concrete ones.
    """
    with fake_mode(values) as mode, enable_python_dispatcher(), torch.no_grad():
        yield mode


def fake_like(value: Any, mode: FakeTensorMode) -> Any:
    """A tensor of `mode` like an example, its symbolic sizes the numbers that it was traced with; or such a number."""
    if not isinstance(value, Tensor):
        return hint(value)

    def like(plain: Tensor) -> Tensor:
        shape, stride = [hint(size) for size in plain.shape], [hint(size) for size in plain.stride()]
        return torch.empty_strided(shape, stride, dtype=plain.dtype, device=plain.device)

    with mode:
        return rewrapped(value, like, hint)


def is_hidden_states(node: Node) -> bool:
    """Return whether a node may hold hidden states: ``[B, S, C]`` of a float type."""
    value = example_tensor(node)
    return value is not None and value.ndim == 3 and value.is_floating_point()


def arguments(node: Node) -> tuple[Any, ...]:
    """Return the positional arguments of a node, for those who know what they are."""
    return node.args


def is_vmapped(value: Tensor) -> bool:
    """Return whether a tensor stands for one of many inside ``torch.vmap``: such a tensor has no memory of its own."""
    return bool(torch._C._functorch.is_batchedtensor(value))


def storage_of(value: Tensor) -> int:
    """Return the memory that a tensor is in, which it may share with others."""
    return value.untyped_storage()._cdata


def ancestors(*nodes: Node) -> list[Node]:
    """Return the nodes that ``nodes`` are computed from, themselves too, in the order of the graph."""
    found, waiting = set(nodes), list(nodes)
    while waiting:
        for parent in waiting.pop().all_input_nodes:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return [node for node in nodes[0].graph.nodes if node in found] if nodes else []


def flatten_args(node: Node) -> list[Any]:
    """Return the leaves of a node's arguments: nodes, numbers and whatever else, in a fixed order."""
    leaves: list[Any] = []

    def collect(leaf: Any) -> Any:
        leaves.append(leaf)
        return leaf

    map_aggregate((node.args, node.kwargs), collect)
    return leaves


def unflatten_args(node: Node, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of ``node`` with other leaves, in the order of ``flatten_args``."""
    iterator = iter(leaves)
    args, kwargs = map_aggregate((node.args, node.kwargs), lambda _: next(iterator))
    return args, kwargs


def writes_into_first(node: Node) -> bool:
    """Return whether a node changes its first argument: an assignment to it or a part of it, or a method in place."""
    if node.target in IN_PLACE:
        return example_tensor(node.args[0]) is not None
    in_place = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    return in_place or node.target is operator.setitem


def writes_into_inputs(graph: Graph) -> bool:
    """Return whether running a graph changes tensors that it is given."""
    inputs = [example_tensor(node) for node in graph.nodes if node.op in ("placeholder", "get_attr")]
    storages = {storage_of(value) for value in inputs if value is not None}
    targets = [example_tensor(node.args[0]) for node in graph.nodes if node.args and writes_into_first(node)]
    return any(value is not None and not is_vmapped(value) and storage_of(value) in storages for value in targets)


def call_target(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run what ``node`` calls on other arguments.

    Raises:
        NotImplementedError: for a node that is neither a function nor a method.
    """
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    raise NotImplementedError(f"a node of kind {node.op} can't be run")


def replace_by_call(
    node: Node, function: Callable[..., Any], args: tuple[Any, ...], may_go: Callable[[Node], bool], **kwargs: Any
) -> None:
    """Put a call of ``function`` in place of ``node``, and erase what led to it alone, as far as it ``may_go``."""
    graph = node.graph
    with graph.inserting_before(node):
        call = graph.call_function(function, args, kwargs)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    unused = [node]
    while unused:
        dead = unused.pop()
        parents = dead.all_input_nodes
        graph.erase_node(dead)
        unused += [each for each in parents if not each.users and may_go(each)]


def name_of(node: Node) -> str:
    """Return the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def format_node(node: Node) -> str:
    """Return a node for people: its operator and the line of the model that it came from."""
    name = name_of(node)
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    place = next((line for line in reversed(lines) if line.startswith("File ")), None)
    return f"{name} ({place})" if place else f"{name}"


def copy_of(module: GraphModule) -> GraphModule:
    """Return a copy to rewrite: Dynamo reads the placeholders of its own graph again later on."""
    return copy_with_nodes(module)[0]


def copy_with_nodes(module: GraphModule) -> tuple[GraphModule, dict[Node, Node]]:
    """Return a copy to rewrite, and the copies of its nodes.

    Its code is written when it is first called, which most copies never are; see ``write_code``.
    """
    graph, nodes = Graph(), dict[Node, Node]()
    graph.output(graph.graph_copy(module.graph, nodes))
    with _use_lazy_graph_module(True):
        copy = _make_graph_module(module, graph)
    copy.meta = dict(module.meta)
    return copy, nodes


def write_code(module: GraphModule) -> GraphModule:
    """Write the code of a copy, for who calls it many times or looks into it; return it."""
    _LazyGraphModule.force_recompile(module)
    return module

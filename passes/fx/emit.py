"""Writes plain PyTorch functions into a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from .nodes import example_tensor, example_value, fake_mode
from .tensor_subclasses import is_wrapper, kind_of, names_inside, plain_tensors, rewrapped


class Emitter:
    """Adds what a function computes to a graph.

    With ``trace`` the function is traced into ATen operators, on the example values of the graph's nodes:
    operators are what caches and Inductor know best. Without, the graph gets a call of the function itself:
    for a graph that Dynamo will trace once more, when sizes are known that the graph does not show.

    A tensor that the function holds of its own (the weights of a learned rule) becomes a constant of the graph.

    Attributes:
        added: the operators that were traced into the graph so far.
    """

    def __init__(self, module: GraphModule, trace: bool) -> None:
        self.module, self.graph, self.trace = module, module.graph, trace
        self.traced: dict[Any, GraphModule] = {}
        self.added: list[Node] = []

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """Add in front of ``node`` meanwhile."""
        with self.graph.inserting_before(node):
            yield

    def __call__(self, function: Callable[..., Any], *arguments: Any, results: int = 1) -> Any:
        """Add ``function(*arguments)``.

        Args:
            function: returns a tensor, or a tuple of tensors.
            arguments: nodes, or values that are handed over as they are.
            results: the length of the tuple; 1 for a tensor.

        Returns:
            The node of the result, or a tuple of nodes.
        """
        if not self.trace:
            call = self.graph.call_function(function, arguments)
            if results == 1:
                return call
            return tuple(self.graph.call_function(operator.getitem, (call, place)) for place in range(results))
        nodes = [plain for argument in arguments if isinstance(argument, Node) for plain in self._plain(argument)]

        def of_nodes(*values: Any) -> Any:
            remaining = iter(values)
            return function(*(_refilled(argument, remaining) for argument in arguments))

        values = [example_value(node) for node in nodes]
        # Layers repeat: the same function of values that look the same is traced once.
        key = (function, *(_signature(argument) for argument in arguments))
        if key not in self.traced:
            with fake_mode(values) as mode, _real_tensors_allowed(mode):
                self.traced[key] = make_fx(of_nodes)(*(_own(value) for value in values))
                # A view of a mask that a rule does not read would keep the mask.
                self.traced[key].graph.eliminate_dead_code()
        inlined = self._inline(self.traced[key], nodes)
        return inlined[0] if results == 1 else inlined

    def constant(self, value: Tensor, like: Node) -> Node:
        """Add a tensor that is known now, on the device of ``like``."""
        there = example_tensor(like)
        value = value if there is None else value.to(there.device)
        node = self.graph.get_attr(self._keep(value))
        mode = fake_mode([example_value(placeholder) for placeholder in self.graph.find_nodes(op="placeholder")])
        return self._remember(node, mode.from_tensor(value))

    def size(self, node: Node, axis: int) -> int | Node:
        """Return the size of a tensor: a number if it is static, else a node."""
        value = example_tensor(node)
        size = None if value is None else value.shape[axis]
        if isinstance(size, int):
            return size
        return self._remember(self.graph.call_method("size", (node, axis)), size)

    def detached(self, argument: Any) -> Any:
        """Return a node whose gradient ends there, for a node that may have one; anything else as it is.

        A function that is traced under `torch.no_grad` is not run under it.
        """
        value = example_tensor(argument)
        if value is None or not value.requires_grad:
            return argument
        with fake_mode([value]):
            return self._remember(self.graph.call_method("detach", (argument,)), value.detach())

    def arithmetic(self, function: Callable[[Any, Any], Any], left: int | Node, right: int | Node) -> int | Node:
        """``function(left, right)`` of two lengths: a number if both are, else a node."""
        if isinstance(left, int) and isinstance(right, int):
            return function(left, right)
        if function is operator.mul and right == 1:
            return left
        known = example_value(left) is not None and example_value(right) is not None
        value = function(example_value(left), example_value(right)) if known else None
        return self._remember(self.graph.call_function(function, (left, right)), value)

    def _plain(self, node: Node) -> list[Node]:
        """Return the node, or for a tensor that wraps others the nodes of these: what tracing can follow."""
        value = example_value(node)
        if not is_wrapper(value):
            return [node]
        inside = (
            self._remember(self.graph.call_function(getattr, (node, name)), getattr(value, name))
            for name in names_inside(value)
        )
        return [plain for each in inside for plain in self._plain(each)]

    @staticmethod
    def _remember(node: Node, value: Any) -> Node:
        if value is not None:
            node.meta["example_value"] = value
        return node

    def _inline(self, traced: GraphModule, arguments: Sequence[Node]) -> tuple[Node, ...]:
        copies: dict[Node, Any] = {}
        remaining = iter(arguments)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(remaining)
            elif node.op == "output":
                return tuple(copies[result] for result in tree_leaves(node.args[0]))
            else:
                copies[node] = self._remember(self.graph.node_copy(node, copies.__getitem__), node.meta.get("val"))
                if node.target is torch.ops.aten.view.default:
                    # What can be viewed depends on strides, which the compiler of the graph may choose otherwise.
                    copies[node].target = torch.ops.aten.reshape.default
                self.added.append(copies[node])
                if node.op == "get_attr":
                    copies[node].target = self._keep(getattr(traced, str(node.target)))
        raise AssertionError("a graph ends with its output")

    def _keep(self, value: Tensor) -> str:
        """Register a constant, under a name that the module does not have."""
        place = 0
        while hasattr(self.module, name := f"_constant_{place}"):
            place += 1
        self.module.register_buffer(name, value, persistent=False)
        return name


@contextmanager
def _real_tensors_allowed(mode: FakeTensorMode) -> Iterator[None]:
    """Let a function that is traced on fake tensors use real ones that it holds."""
    allowed, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        yield
    finally:
        mode.allow_non_fake_inputs = allowed


def _refilled(argument: Any, remaining: Iterator[Any]) -> Any:
    """Return an argument of a function, with the next of the ``remaining`` values where it is a node."""
    if not isinstance(argument, Node):
        return argument
    value = example_value(argument)
    return rewrapped(value, lambda _: next(remaining)) if is_wrapper(value) else next(remaining)


def _own(value: Any) -> Any:
    """A tensor like `value`, and no other's: nodes may share an example, which tracing would take for one input."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _signature(argument: Any) -> str:
    """Return all that tracing may depend on in an argument of a function."""
    value = example_value(argument)
    if isinstance(value, Tensor):
        sizes, strides = [str(size) for size in value.shape], [str(stride) for stride in value.stride()]
        inside = [] if not is_wrapper(value) else [_signature(plain) for plain in plain_tensors(value)]
        return str((sizes, strides, value.dtype, value.device, value.requires_grad, kind_of(value), inside))
    return f"{isinstance(argument, Node)} {value}"

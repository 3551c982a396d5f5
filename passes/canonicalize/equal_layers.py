"""Writes out the layers that Dynamo did not trace, since each is equal to one that it did.

While a model is traced for this backend, the first of equal layers says what it reads and gives, and each later one
asks for the same of its own (``integrations.transformers.equal_layers``)::

    torch.ops.sharp_compile.traced_layer([hidden, mask, weight, ...], layer, 0)
    ...  # up to what the layer hands to a cache: that each layer does by itself
    torch.ops.sharp_compile.traced_layer([key, value], layer, 1)

    key, value = torch.ops.sharp_compile.equal_layer([other_hidden, mask, other_weight, ...], layer, 0)

Between two such calls the first layer computes the values of the second from those of the first, and from what it
had before. A later layer does so with values of its own: its nodes are copies.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import torch
from sympy import Symbol
from torch import SymInt, Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves, tree_map

from ..fx.nodes import arguments, example_value, fake_mode, storage_of
from ..fx.sizes import expression

_library = torch.library.Library("sharp_compile", "FRAGMENT")
_library.define("traced_layer(Tensor[] values, str layer, int step) -> ()")
_library.define("equal_layer(Tensor[] values, str layer, int step) -> Tensor[]")

TRACED_LAYER = torch.ops.sharp_compile.traced_layer
EQUAL_LAYER = torch.ops.sharp_compile.equal_layer

_EXAMPLES = "sharp_traced_layers"
"""The attribute of a mode of fake tensors that holds the values of its layers at their steps."""


class NotEqual(Exception):
    """A layer can't be a copy of the one that was traced.

    Attributes:
        layer: the name of that one.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(reason)
        self.layer = layer


@torch.library.register_fake("sharp_compile::traced_layer", lib=_library)
def _traced(values: list[Tensor], layer: str, step: int) -> None:
    vars(fake_mode(values)).setdefault(_EXAMPLES, {})[layer, step] = values


@torch.library.register_fake("sharp_compile::equal_layer", lib=_library)
def _equal(values: list[Tensor], layer: str, step: int) -> list[Tensor]:
    given = vars(fake_mode(values))[_EXAMPLES][layer, step + 1]
    return [torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=each.device) for each in given]


def looks_of_traced(values: list[Tensor], layer: str, step: int) -> list[Hashable]:
    """Return the looks of what a layer had at a step that was traced with tensors such as ``values``."""
    return [look_of(each) for each in vars(fake_mode(values))[_EXAMPLES][layer, step]]


def look_of(value: Tensor) -> Hashable:
    """Return what tensors have in common that are traced alike."""
    sizes = tuple(expression(size) for size in (*value.shape, *value.stride()))
    return value.ndim, sizes, value.dtype, value.device, value.requires_grad


def write_out_equal_layers(graph: Graph) -> bool:
    """Put copies of the nodes of traced layers in place of the calls that ask for the same.

    Args:
        graph: of Dynamo's, as it comes.

    Returns:
        Whether any layer was written out, or had said what it reads and gives.

    Raises:
        NotEqual: where a layer reads what it was not given, draws a length from data, or is in another graph.
    """
    traced = [node for node in graph.nodes if node.target in (TRACED_LAYER, TRACED_LAYER.default)]
    equal = [node for node in graph.nodes if node.target in (EQUAL_LAYER, EQUAL_LAYER.default)]
    steps = _steps(graph, traced)
    layer = None
    for node in equal:
        name, step = _step_of(node)
        if (name, step) not in steps:
            raise NotEqual(name, "the layer that was traced is in another graph")
        if step == 0:
            layer = _EqualLayer(name)
        assert layer is not None and layer.name == name
        layer.write_out(node, *steps[name, step])
    for node in traced:
        graph.erase_node(node)
    return bool(traced)


def _step_of(node: Node) -> tuple[str, int]:
    _, name, step = arguments(node)
    return name, step


def _steps(graph: Graph, traced: list[Node]) -> dict[tuple[str, int], tuple[Node, list[Node], Node]]:
    """Return for each step of a traced layer the call before it, its nodes, and the call after it."""
    calls = {_step_of(node): node for node in traced}
    steps: dict[tuple[str, int], tuple[Node, list[Node], Node]] = {}
    inside: list[Node] = []
    for node in graph.nodes:
        if node.target in (TRACED_LAYER, TRACED_LAYER.default):
            name, step = _step_of(node)
            inside = []
            if (name, step + 1) in calls:
                steps[name, step] = node, inside, calls[name, step + 1]
        elif node.op != "placeholder":
            inside.append(node)
    return steps


class _EqualLayer:
    """A layer that is being written out.

    Attributes:
        name: of the layer that it is equal to.
        nodes: its own, for those of that layer.
        known: the sizes that depend on data among what it reads.
        memory: by the memory that examples of that layer are in: one of its own, and how much later it starts.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: dict[Node, Node] = {}
        self.known: set[Symbol] = set()
        self.memory: dict[int, tuple[Tensor, Any]] = {}

    def write_out(self, call: Node, before: Node, inside: list[Node], after: Node) -> None:
        """Put copies of the nodes ``inside`` a step in place of the ``call`` that asks for what they give."""
        for theirs, ours in zip(arguments(before)[0], arguments(call)[0], strict=True):
            if self.nodes.setdefault(theirs, ours) is not ours:
                raise NotEqual(self.name, f"it reads {theirs.name} in two places, others read two values there")
            old, new = example_value(theirs), example_value(ours)
            self.known |= free_unbacked_symbols(old)
            offset = new.storage_offset() - old.storage_offset()
            base, known = self.memory.setdefault(storage_of(old), (new, offset))
            if storage_of(base) != storage_of(new) or known != offset:
                raise NotEqual(self.name, f"{theirs.name} is a view of another value that it reads")
        theirs_in, ours_in = _modules_of(before), _modules_of(call)
        with call.graph.inserting_before(call):
            for node in inside:
                self._copy(node, theirs_in, ours_in)
        given = arguments(after)[0]
        for user in list(call.users):
            assert user.target is operator.getitem
            result = self.nodes.get(given[arguments(user)[1]])
            if result is None:
                raise NotEqual(self.name, "it gives what it was not given")
            user.replace_all_uses_with(result)
            call.graph.erase_node(user)
        call.graph.erase_node(call)

    def _copy(self, node: Node, theirs_in: dict[str, Any], ours_in: dict[str, Any]) -> None:
        for parent in node.all_input_nodes:
            if parent not in self.nodes and not isinstance(example_value(parent), int | SymInt | None):
                raise NotEqual(self.name, f"{node.name} reads {parent.name}, which it was not given")
        value = node.meta.get("example_value")
        leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor | SymInt)]
        if any(free_unbacked_symbols(leaf) - self.known for leaf in leaves):
            raise NotEqual(self.name, f"{node.name} has a size that depends on data, which differs from layer to layer")
        copy = self.nodes[node] = node.graph.node_copy(node, lambda each: self.nodes.get(each, each))
        if value is not None:
            copy.meta["example_value"] = tree_map(self._own, value)
        copy.meta["nn_module_stack"] = _moved(_modules_of(node), theirs_in, ours_in)

    def _own(self, value: Any) -> Any:
        """Return an example of its own: views of one memory are views of one here too."""
        if not isinstance(value, Tensor):
            return value
        with fake_mode(value):
            if (memory := storage_of(value)) in self.memory:
                base, offset = self.memory[memory]
                if base.dtype == value.dtype:
                    return base.as_strided(value.shape, value.stride(), value.storage_offset() + offset)
            own = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            self.memory.setdefault(memory, (own, -value.storage_offset()))
            return own


def _modules_of(node: Node) -> dict[str, Any]:
    """Return the modules that a node comes from, outermost first: path and class of each."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return stack


def _moved(stack: dict[str, Any], theirs_in: dict[str, Any], ours_in: dict[str, Any]) -> dict[str, Any]:
    """Return the modules that a copy comes from: inside the innermost of ``ours_in`` what was in ``theirs_in``'s."""
    if not theirs_in or not ours_in:
        return stack
    old, new = (list(stack_of.values())[-1][0] for stack_of in (theirs_in, ours_in))
    inside = {
        f"{key} of {new}": (new + path.removeprefix(old), cls)
        for key, (path, cls) in stack.items()
        if key not in theirs_in
    }
    return ours_in | inside

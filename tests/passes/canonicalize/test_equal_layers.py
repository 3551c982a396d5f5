"""Layers that Dynamo did not trace get copies of the nodes of one that it did."""

import operator

import pytest
import torch
from sharp_compile.passes.canonicalize.equal_layers import (
    EQUAL_LAYER,
    TRACED_LAYER,
    NotEqual,
    write_out_equal_layers,
)
from sharp_compile.passes.fx.nodes import storage_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

PATHS = {"traced": ("L['self'].layers[0]", torch.nn.Module), "equal": ("L['self'].layers[7]", torch.nn.Module)}


class Drawn:
    """A graph in the making: each node has an example value and the modules that it comes from."""

    def __init__(self):
        self.graph, self.mode = Graph(), FakeTensorMode(shape_env=ShapeEnv())

    def input(self, name, *shape):
        node = self.graph.placeholder(name)
        with self.mode:
            node.meta["example_value"] = torch.empty(shape)
        return node

    def add(self, function, *args, of="traced", inside=""):
        node = self.graph.call_function(function, args)
        with self.mode:
            examples = torch.fx.node.map_arg(args, lambda each: each.meta["example_value"])
            node.meta["example_value"] = function(*examples)
        path, cls = PATHS[of]
        node.meta["nn_module_stack"] = {of: (path, cls)} | ({"mlp": (path + inside, cls)} if inside else {})
        return node


INPUTS = {"states": (3, 4), "first": (4,), "second": (4,), "other": (4,)}


def two_layers(reads="first"):
    """A graph with a layer that views its states, doubles them and adds a weight, and one that is equal to it."""
    drawn = Drawn()
    inputs = {name: drawn.input(name, *shape) for name, shape in INPUTS.items()}
    states, first, second = inputs["states"], inputs["first"], inputs["second"]
    drawn.add(TRACED_LAYER, [states, first], "layer 0", 0)
    view = drawn.add(torch.transpose, states, 0, 1, inside=".mlp")
    back = drawn.add(torch.transpose, view, 0, 1)
    result = drawn.add(torch.add, drawn.add(torch.mul, back, 2), inputs[reads])
    drawn.add(TRACED_LAYER, [result], "layer 0", 1)
    equal = drawn.add(EQUAL_LAYER, [result, second], "layer 0", 0, of="equal")
    drawn.graph.output((result, drawn.add(operator.getitem, equal, 0, of="equal")))
    return drawn.graph


def test_nodes_are_copied_with_values_of_its_own():
    graph = two_layers()
    assert write_out_equal_layers(graph)
    states, first, second, other = (torch.randn(shape) for shape in INPUTS.values())
    result, after = GraphModule({}, graph)(states, first, second, other)
    torch.testing.assert_close(result, states * 2 + first)
    torch.testing.assert_close(after, result * 2 + second)
    assert not any(node.target in (EQUAL_LAYER, TRACED_LAYER) for node in graph.nodes)


def test_copies_come_from_the_modules_of_their_layer_and_are_views_of_its_values():
    graph = two_layers()
    write_out_equal_layers(graph)
    views = [node for node in graph.nodes if node.target is torch.transpose]
    sums = [node for node in graph.nodes if node.target is torch.add]
    assert [path for path, _ in views[2].meta["nn_module_stack"].values()] == [
        "L['self'].layers[7]",
        "L['self'].layers[7].mlp",
    ]
    memory = [storage_of(node.meta["example_value"]) for node in (*views, *sums)]
    assert memory[0] == memory[1] and memory[2] == memory[3] == memory[4] and len(set(memory)) == 3


def test_nothing_to_write_out():
    graph = Graph()
    graph.output(graph.placeholder("x"))
    assert not write_out_equal_layers(graph)


def test_a_layer_that_reads_what_it_was_not_given():
    with pytest.raises(NotEqual, match="reads other, which it was not given"):
        write_out_equal_layers(two_layers(reads="other"))


def test_a_layer_that_draws_a_size_from_data():
    """Another layer would draw another size, though the examples of both would say the same."""
    drawn = Drawn()
    states = drawn.input("states", 3, 4)
    drawn.add(TRACED_LAYER, [states], "layer 0", 0)
    places = drawn.add(torch.nonzero, states)
    drawn.add(TRACED_LAYER, [places], "layer 0", 1)
    equal = drawn.add(EQUAL_LAYER, [states], "layer 0", 0, of="equal")
    drawn.graph.output(drawn.add(operator.getitem, equal, 0, of="equal"))
    with pytest.raises(NotEqual, match="a size that depends on data"):
        write_out_equal_layers(drawn.graph)


def test_the_traced_layer_is_in_another_graph():
    drawn = Drawn()
    states = drawn.input("states", 3, 4)
    equal = drawn.graph.call_function(EQUAL_LAYER, ([states], "layer 3", 0))
    drawn.graph.output(equal)
    with pytest.raises(NotEqual, match="in another graph") as raised:
        write_out_equal_layers(drawn.graph)
    assert raised.value.layer == "layer 3"

"""Equal layers become calls of one body, with the numbers of before; layers that are not equal stay as they are."""

import pytest
import torch
import torch.nn.functional as F
from sharp_compile.passes.analysis.equal_regions import count_distinct_layers, find_equal_regions
from sharp_compile.passes.rewrite.reuse_regions import reuse_regions
from torch import nn

from tests.graphs import dynamo_graph

SIZE, HEADS, LENGTH = 16, 2, 6


class Layer(nn.Module):
    """A decoder layer, of which a test may change what is done with its attention, and in its MLP."""

    def __init__(self, scale=1.0, change=None):
        super().__init__()
        self.project, self.out = nn.Linear(SIZE, 3 * SIZE), nn.Linear(SIZE, SIZE)
        self.up = nn.Linear(SIZE, SIZE)
        self.scale, self.change = scale, change

    def forward(self, hidden, mask):
        q, k, v = self.project(F.layer_norm(hidden, (SIZE,))).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2)) * self.scale
        hidden = hidden + F.gelu(self.up(hidden))
        return (hidden if self.change is None else self.change(hidden)), k


class Stack(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden, mask):
        keys = []
        for layer in self.layers:
            hidden, key = layer(hidden, mask)
            keys.append(key)
        return F.layer_norm(hidden, (SIZE,)), keys


def inputs(rows=2):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return torch.randn(rows, LENGTH, SIZE, generator=generator), mask


@pytest.fixture(autouse=True)
def without_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def kinds(*layers):
    """How many regions each kind has."""
    return [len(regions) for regions in find_equal_regions(dynamo_graph(Stack(*layers), *inputs()).graph)]


def test_equal_layers_are_calls_of_one_body():
    model = Stack(*(Layer() for _ in range(5)))
    graph = dynamo_graph(model, *inputs())
    before = len(graph.graph.nodes)
    reused = reuse_regions(graph)
    calls = reused.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
    assert len(calls) == 5
    assert len({call.args[1] for call in calls}) == 1
    assert len(graph.graph.nodes) == before  # who asked has the graph as it was
    assert count_distinct_layers(graph.graph) == 1
    placeholders = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
    drawn = [torch.randn(value.shape) if value.is_floating_point() else inputs()[1] for value in placeholders]
    for actual, expected in zip(reused(*drawn), graph(*drawn), strict=True):
        assert actual.equal(expected)


def test_inductor_compiles_them():
    model = Stack(*(Layer() for _ in range(4)))

    def backend(module, given):
        return torch._inductor.compile(reuse_regions(module), given)

    actual, keys = torch.compile(model, backend=backend)(*inputs())
    expected, expected_keys = model(*inputs())
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(keys, expected_keys)


def test_what_is_after_the_last_layer_is_outside():
    regions = find_equal_regions(dynamo_graph(Stack(*(Layer() for _ in range(3))), *inputs()).graph)
    ((first, *_, last),) = regions
    assert len(first.nodes) == len(last.nodes)
    assert all("layer_norm" not in node.name or node in last.nodes[:1] for node in last.nodes[-3:])


def test_layers_of_two_kinds():
    assert kinds(*(Layer(scale) for scale in (1.0, 0.5, 1.0, 0.5, 1.0))) == [3, 2]


def test_one_that_differs_by_a_constant_stays_as_it_is():
    assert kinds(Layer(), Layer(), Layer(2.0), Layer()) == [3]
    assert kinds(Layer(), Layer(2.0)) == []
    # Equal as numbers: their code differs.
    assert kinds(Layer(2), Layer(2.0)) == []


def test_layers_of_other_shapes_are_not_equal():
    class Shorter(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(6))

        def forward(self, hidden, mask):
            for number, layer in enumerate(self.layers):
                hidden, _ = layer(hidden, mask)
                if number == 2:
                    hidden, mask = hidden[:, ::2].contiguous(), mask[::2, ::2].contiguous()
            return hidden

    found = find_equal_regions(dynamo_graph(Shorter(), *inputs()).graph)
    assert [len(regions) for regions in found] == [3, 3]


def test_random_numbers_are_drawn_by_each_layer():
    assert kinds(*(Layer(change=lambda x: F.dropout(x, 0.5, True) + x) for _ in range(3))) == [3]  # its end is outside

    class Inside(Layer):
        def __init__(self, probability):
            super().__init__()
            self.probability = probability

        def forward(self, hidden, mask):
            q = k = v = self.out(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.probability)
            return hidden + attended.transpose(1, 2).flatten(2), k

    class Dropping(Layer):
        def __init__(self, training):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.drop.train(training)

        def forward(self, hidden, mask):
            q = k = v = self.drop(self.out(hidden)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            return hidden + F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2), k

    assert kinds(*(Dropping(False) for _ in range(3))) == [3]
    assert kinds(*(Dropping(True) for _ in range(3))) == []
    assert kinds(*(Inside(0.0) for _ in range(3))) == [3]
    assert kinds(*(Inside(0.1) for _ in range(3))) == []


def test_a_view_of_an_operand_can_not_come_out():
    class Passing(Layer):
        def forward(self, hidden, mask):
            attended, _ = super().forward(hidden, mask)
            return attended + hidden.transpose(0, 1).transpose(0, 1), hidden.transpose(0, 1)

    assert kinds(*(Layer() for _ in range(3))) == [3]
    assert kinds(*(Passing() for _ in range(3))) == []


def test_a_graph_without_layers_is_left_alone():
    graph = dynamo_graph(lambda x: x.relu() + 1, torch.randn(3))
    assert reuse_regions(graph) is None
    assert count_distinct_layers(graph.graph) == 0


def test_symbolic_lengths():
    model = Stack(*(Layer() for _ in range(4)))
    compiled = torch.compile(model, backend=lambda module, given: torch._inductor.compile(reuse_regions(module), given))
    for length in (6, 5, 4):
        hidden, mask = inputs()
        hidden, mask = hidden[:, :length], mask[:length, :length]
        torch.testing.assert_close(compiled(hidden, mask)[0], model(hidden, mask)[0])

"""What the graph of one of several ranks shows, and where it shows too little.

The process group is one that pretends: collectives give back what they got, which is enough to compile for.
"""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

import sharp_compile
from sharp_compile import CannotPrune
from tests.passes.canonicalize.test_sinks import WithSinks
from tests.support import the_pruned_graph
from tests.toy import Layer, Toy, toy_inputs

RANKS = 2
PLAN = {"q": "colwise", "k": "colwise", "v": "colwise", "o": "rowwise", "up": "colwise", "down": "rowwise"}


@pytest.fixture(autouse=True)
def group():
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2 * RANKS)
    yield
    distributed.destroy_process_group()


def mesh(*shape):
    return init_device_mesh("cpu", shape or (2 * RANKS,))


def whole(layers=2):
    return Toy(heads=8, kv_heads=4, layers=layers).requires_grad_(False)


def sharded(plan=PLAN, model=None, over=None):
    """A model as transformers makes that of a rank."""
    model = (model or whole()).requires_grad_(False)
    over = over or mesh()
    styles = {}
    for number, layer in enumerate(model.layers):
        layer.heads, layer.kv_heads = layer.heads // over.size(), layer.kv_heads // over.size()
        for name, style in plan.items():
            module = f"layers.{number}.{name}"
            styles |= {f"{module}.weight": style, f"{module}.bias": style, module: style}
    return apply_tensor_parallelism(model, over, styles)


def run(model, no_grad=True, **options):
    """The graph that the inner backend was given."""
    graphs = []

    def inner(module, inputs):
        graphs.append(module.graph)
        return module

    cut = {} if "stages" in options else {"retention": 0.5, "layer": 0}
    options = {"inner": inner, "on_skip": "raise"} | cut | options
    with torch.set_grad_enabled(not no_grad):
        torch.compile(model, backend="sharp", options=options)(**toy_inputs())
    return graphs[-1]


def exchanges(graph):
    """The shapes that are exchanged for the selection, by the kind of exchange."""
    found = {}
    for node in graph.nodes:
        for kind in ("all_gather_into_tensor", "broadcast"):
            if f"_c10d_functional.{kind}" in str(node.target):
                found.setdefault(kind, []).append(list(node.args[0].meta["example_value"].shape))
    return found


def test_heads_are_gathered_and_one_choice_holds():
    graph = run(sharded(), selector="fastv")
    report = the_pruned_graph(sharp_compile.reports())
    assert report.hoisted
    # Of 8 heads and 4 key heads over 4 ranks: the keys before their rotation, then the query of the last position.
    assert exchanges(graph) == {
        "all_gather_into_tensor": [[1, 1, 26, 8], [1, 2, 1, 8]],
        "broadcast": [[1, report.pruned_length]],
    }


def test_a_rule_without_attention_exchanges_its_choice_only():
    assert exchanges(run(sharded(), selector="diversity")).keys() == {"broadcast"}


def test_heads_that_every_rank_has_are_not_gathered():
    """Only the feed-forward part is shared out."""
    plan = {"up": "colwise", "down": "rowwise"}
    model = sharded(plan)
    for layer in model.layers:
        layer.heads, layer.kv_heads = 8, 4
    assert exchanges(run(model, selector="fastv")).keys() == {"broadcast"}


def test_each_stage_exchanges():
    found = exchanges(run(sharded(model=whole(layers=3)), selector="fastv", stages=[(0, 0.75), (1, 0.5)]))
    assert [len(found[kind]) for kind in ("all_gather_into_tensor", "broadcast")] == [4, 2]


def test_processes_that_share_nothing_exchange_nothing():
    assert exchanges(run(whole(), selector="fastv")) == {}


class Summed(Layer):
    """Shares its work in a way that the graph does not show: its parameters are plain tensors."""

    def attend(self, q, k, v, mask):
        out = super().attend(q, k, v, mask)
        distributed.all_reduce(out)
        return out


class Scaled(Layer):
    """Its queries are more than a linear projection."""

    def attend(self, q, k, v, mask):
        return super().attend(q * self.factor.to_local(), k, v, mask)


class WithOwnSinks(WithSinks):
    """Has the sinks of its own heads."""

    def of_heads(self):
        return self.sinks.to_local()


def layers_of(kind):
    model = whole()
    model.layers = nn.ModuleList(kind(16, 8, 4, 8, False) for _ in model.layers)
    return model


def test_plain_parameters_are_not_known_to_be_shared():
    with pytest.raises(CannotPrune, match=r"all_reduce .*communicates .* the graph does not show what they share"):
        run(layers_of(Summed).requires_grad_(False))


def test_sinks_of_own_heads_are_not_exchanged():
    model, over = whole(), mesh()
    model.eager, model.layers = True, nn.ModuleList(WithOwnSinks(16, 8, 4, 8) for _ in model.layers)
    model = sharded(model=model, over=over)
    for layer in model.layers:
        layer.sinks = nn.Parameter(distribute_tensor(torch.ones(8), over, [Shard(0)], src_data_rank=None))
    model.requires_grad_(False)
    with pytest.raises(CannotPrune, match="share the heads of layer 0, and its mask, positions or sinks as well"):
        run(model, selector="fastv")
    torch._dynamo.reset()
    assert exchanges(run(model, selector="uniform")).keys() == {"broadcast"}


def test_own_queries_must_come_from_a_linear_projection():
    model = layers_of(Scaled)
    over = mesh()
    for layer in model.layers:
        layer.factor = nn.Parameter(distribute_tensor(torch.ones(8, 1, 1), over, [Shard(0)], src_data_rank=None))
    with pytest.raises(CannotPrune, match="not as those of heads that are shared out evenly"):
        run(sharded(model=model, over=over))


def test_hidden_states_must_be_the_same(monkeypatch):
    monkeypatch.setattr(distributed, "all_reduce", lambda *args, **kwargs: None)
    with pytest.raises(CannotPrune, match="that enter decoder layer 1 are not the same"):
        run(sharded(model=whole(layers=3)), selector="diversity", layer=1)


def test_gradients_are_declined():
    with pytest.raises(CannotPrune, match=r"computes with distributed tensors, .* under torch\.no_grad\(\)"):
        run(sharded(), no_grad=False)


def test_a_mesh_of_several_dimensions_is_declined():
    model, over = whole(), mesh(2, RANKS)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.scale = nn.Parameter(
                distribute_tensor(torch.ones(16, 16), over, [Shard(0), Shard(1)], src_data_rank=None), False
            )

        def forward(self, features, **inputs):
            return self.model(features=features + self.scale.to_local().sum(), **inputs)

    with pytest.raises(CannotPrune, match="sharded over a mesh of 2 dimensions"):
        run(Twice())


def test_several_groups_are_declined():
    over = init_device_mesh("cpu", (2, RANKS), mesh_dim_names=("feed", "attend"))
    model = whole()
    for names, part in ((("up", "down"), "feed"), (("q", "k", "v", "o"), "attend")):
        model = sharded({name: PLAN[name] for name in names}, model, over[part])
    for layer in model.layers:
        layer.heads, layer.kv_heads = 4, 2
    with pytest.raises(CannotPrune, match="sharded over several process groups"):
        run(model)

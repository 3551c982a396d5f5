"""What each pass makes of a small graph, line by line, and which operators a pruned graph has."""

import copy

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from sharp_compile.passes.analysis.attention import find_attention
from sharp_compile.passes.analysis.cut_sites import find_cut_sites
from sharp_compile.passes.analysis.decoder import find_decoder
from sharp_compile.passes.analysis.injection import find_injections
from sharp_compile.passes.canonicalize.equal_views import merge_equal_views
from sharp_compile.passes.canonicalize.flex_to_sdpa import lower_flex_to_sdpa, restore_flex
from sharp_compile.passes.canonicalize.functionalize import make_functional, make_injections_functional
from sharp_compile.passes.canonicalize.single_parts import write_single_parts
from sharp_compile.passes.canonicalize.static_cache import find_slack
from sharp_compile.passes.canonicalize.whole_slices import write_whole_slices
from sharp_compile.passes.fx.emit import Emitter
from sharp_compile.passes.fx.nodes import copy_of
from sharp_compile.passes.pipeline import prune
from sharp_compile.passes.rewrite.early_gather import hoist
from sharp_compile.passes.rewrite.lazy_queries import query_module
from sharp_compile.passes.rewrite.segment_mask import emit_segment_mask
from sharp_compile.passes.rewrite.shrink import Shrinker
from sharp_compile.passes.rewrite.tail import follow_full
from sharp_compile.passes.token_dim.solver import probe
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sharp_compile.options import Config, Cut
from sharp_compile.sharp_options import parse_segment
from tests.graphs import Recorder, assert_golden, dynamo_graph, listing
from tests.toy import Toy, toy_inputs

S, C = 6, 4


def layer(hidden, weight):
    """One head, no norms: the least that is a decoder layer."""
    normed = torch.tanh(hidden)
    query, key = (normed @ weight).unsqueeze(1), normed.unsqueeze(1)
    return hidden + F.scaled_dot_product_attention(query, key, key, is_causal=True).squeeze(1)


def decoder(embeddings, table, weight):
    hidden = embeddings + 1
    for _ in range(3):
        hidden = layer(hidden, weight) * table
    return hidden


def graph_of_decoder():
    return dynamo_graph(decoder, torch.randn(1, S, C), torch.randn(1, S, 1), torch.randn(C, C))


def source(module):
    return module.graph.find_nodes(op="placeholder")[0]


def test_functionalize():
    def writes(hidden, mask, features):
        embeddings = hidden * 2
        embeddings[mask] = features
        embeddings += 1
        return embeddings.sum(2)

    mask = torch.tensor([[True, False, True, False, False, False]])
    module = dynamo_graph(writes, torch.randn(1, S, C), mask, torch.randn(2, C))
    before = copy.deepcopy(module.graph)
    make_injections_functional(module.graph)
    make_functional(module.graph, source(module))
    assert_golden("functionalize", before=before, after=module.graph)


def test_whole_slices():
    module = dynamo_graph(lambda keys: (keys[:, -8:], keys[:, -2:]), torch.randn(1, S, C))
    before = copy.deepcopy(module.graph)
    write_whole_slices(module.graph)
    assert_golden("whole_slices", before=before, after=module.graph)


def test_equal_views():
    def layers(embeddings, table):
        first = embeddings + 1
        return first * table.unsqueeze(1), first - table.unsqueeze(1), first * table.unsqueeze(0), first.unsqueeze(1)

    module = dynamo_graph(layers, torch.randn(S, S, C), torch.randn(S, C))
    before = copy.deepcopy(module.graph)
    merge_equal_views(module.graph, source(module))
    assert_golden("equal_views", before=before, after=module.graph)


def test_single_parts():
    def first_keys(keys):
        nothing = torch.tensor([], dtype=keys.dtype)
        return torch.cat([nothing, keys.transpose(0, 1)], -2), torch.cat([keys, keys]), torch.cat([nothing.int(), keys])

    module = dynamo_graph(first_keys, torch.randn(2, S, C))
    before = copy.deepcopy(module.graph)
    write_single_parts(module.graph)
    assert_golden("single_parts", before=before, after=module.graph)


@pytest.mark.skipif(
    Version(torch.__version__) >= Version("2.14"), reason="its vmap has other operators than those of the listing"
)
def test_flex_to_sdpa():
    blocks = create_block_mask(lambda b, h, q, k: q >= k, None, None, S, S, "cpu")
    module = dynamo_graph(
        lambda states: flex_attention(states, states, states, block_mask=blocks), torch.randn(1, 2, S, C)
    )
    before = copy.deepcopy(module.graph)
    emit = Emitter(module, trace=True)
    lowered = lower_flex_to_sdpa(emit, source(module))
    lowered_graph = copy.deepcopy(module.graph)
    restore_flex(emit, lowered)
    module.graph.eliminate_dead_code()
    assert_golden("flex_to_sdpa", before=before, lowered=lowered_graph, restored=module.graph)


def test_static_cache():
    def cached(embeddings, count):
        buffer = torch.zeros(1, 2, 9, C)
        buffer = buffer.index_copy(2, torch.arange(embeddings.shape[1]) + count, embeddings.expand(2, -1, -1)[None])
        return buffer, count.add_(embeddings.shape[1])

    module = dynamo_graph(cached, torch.randn(1, S, C), torch.tensor([0]))
    before = copy.deepcopy(module.graph)
    slack = find_slack(Emitter(module, trace=True), source(module))
    assert slack.padded_lengths == [9]
    assert_golden("static_cache", before=before, after=module.graph)


def test_shrink():
    module = graph_of_decoder()
    before = copy.deepcopy(module.graph)
    found = find_decoder(module.graph, source(module))
    (site,), _ = find_cut_sites(found, [Cut(0, 1, 2)], needs_attention=True)
    plans = probe(module.graph, source(module), [site.after])
    shrinker = Shrinker(Emitter(module, trace=False), plans, source(module), [site.after])
    with module.graph.inserting_after(source(module)):
        kept = module.graph.placeholder("kept")
    shrinker.begin_stage(kept, 3)
    shrinker.finish()
    assert_golden("shrink", before=before, after=module.graph)
    inputs = [torch.randn(1, S, C), torch.randn(1, S, 1), torch.randn(C, C)]
    positions = torch.tensor([[0, 3, 5]])
    module.recompile()
    (actual,) = module(inputs[0], positions, inputs[2], inputs[1])
    hidden = layer(inputs[0] + 1, inputs[2]) * inputs[1]
    hidden, table = hidden[:, positions[0]], inputs[1][:, positions[0]]
    for _ in range(2):
        hidden = layer(hidden, inputs[2]) * table
    torch.testing.assert_close(actual, hidden)


def test_early_gather_and_lazy_queries():
    module = graph_of_decoder()
    before = copy.deepcopy(module.graph)
    found = find_decoder(module.graph, source(module))
    (site,), _ = find_cut_sites(found, [Cut(1, 1, 2)], needs_attention=True)
    hoisted = hoist(site, site.attention, site.attention.key)
    after = copy.deepcopy(module.graph)
    plans = probe(module.graph, source(module), [hoisted.entry], pointwise=hoisted.pointwise)
    queries, inputs = query_module(hoisted, plans)
    assert_golden("early_gather", before=before, after=after, queries=queries.graph)
    values = [torch.randn(1, S, C), torch.randn(C, C)]
    assert [node.name for node in inputs] == [site.hidden.name, "l_weight_"]
    positions = torch.tensor([[4, 1]])
    expected = (torch.tanh(values[0][:, positions[0]]) @ values[1]).unsqueeze(1)
    torch.testing.assert_close(queries(positions, *values), expected)


def test_segment_mask():
    module = graph_of_decoder()
    with module.graph.inserting_after(source(module)):
        frame = module.graph.placeholder("frame")
    frame.meta["example_value"] = source(module).meta["example_value"].new_empty((1, S), dtype=torch.int64)
    before = copy.deepcopy(module.graph)
    found = find_decoder(module.graph, source(module))
    emit_segment_mask(Emitter(module, trace=False), found, 0, frame, parse_segment("forward"))
    assert_golden("segment_mask", before=before, after=module.graph)


def test_tail():
    module = dynamo_graph(
        lambda states, ids: (states * 2)[:, -1] + states.mean(1), torch.randn(1, S, C), torch.ones(1, S)
    )
    before = copy.deepcopy(module.graph)
    after = copy_of(module)
    assert follow_full(after, 0) is not None
    assert_golden("tail", before=before, after=after.graph)


def test_finalize():
    """What is returned: fewer tokens, the number of all of them, and after these what the selection tells."""

    def injected(embeddings, features, mask, weight):
        hidden = embeddings.masked_scatter(mask.unsqueeze(-1), features)
        for _ in range(2):
            hidden = layer(hidden, weight)
        return hidden, hidden.shape[1]

    embeddings, mask = torch.randn(1, S, C), torch.tensor([[False, True, True, True, True, False]])
    for each in (embeddings, mask):
        torch._dynamo.mark_dynamic(each, 1)
    module = dynamo_graph(injected, embeddings, torch.randn(4, C), mask, torch.randn(C, C))
    (injection,) = find_injections(module.graph)
    options = {"layer": 0, "retention": 0.5, "selector": "uniform", "hoist": False}
    pruned = prune(module, injection, Config.parse(options))
    # The selection in the middle has a hundred nodes, of which other tests tell.
    _, after = listing(pruned.module.graph).split("normed_1: ")
    assert_golden("finalize", before=module.graph, after_the_cut=f"normed_1: {after}")


# Of the selection: a sort for each cut, and what is gathered. A hoisted layer has its norm twice.
@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"layer": 1, "retention": 0.25, "hoist": False}, {"sort.stable": 1, "gather.default": 7, "layer_norm": 0}),
        ({"layer": 1, "retention": 0.25}, {"sort.stable": 1, "gather.default": 7, "layer_norm": 1}),
        ({"stages": [(0, 0.5), (2, 0.25)]}, {"sort.stable": 2, "gather.default": 15, "layer_norm": 1}),
    ],
    ids=["at the end of a layer", "hoisted", "two stages"],
)
def test_operators_of_a_pruned_graph(options, added):
    """Attention, products and what comes before the decoder are as they were."""
    plain, pruned = Recorder(), Recorder()
    torch.compile(Toy(), backend=plain)(**toy_inputs())
    options = {"inner": pruned, "selector": "uniform"} | options
    torch.compile(Toy(), backend="sharp", options=options)(**toy_inputs())
    for name in ("scaled_dot_product_attention", "linear", "gelu", "embedding", "masked_scatter"):
        assert pruned.operators[name] == plain.operators[name] > 0
    assert {name: pruned.operators[name] - plain.operators[name] for name in added} == added
    assert len(find_attention(pruned.modules[0].graph)) == len(Toy().layers)

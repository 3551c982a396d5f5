"""The backend as users meet it: what it prunes, what it leaves alone, and what it says of both."""

import logging
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from sharp_compile.backend import sharp
from tests.support import logged
from tests.toy import Toy, toy_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def compiled(model, dynamic=None, **options):
    options = {"inner": "eager", "on_skip": "raise"} | options
    return torch.compile(model, backend="sharp", options=options, dynamic=dynamic)


def the_report():
    (report,) = sharp_compile.reports()
    return report


def check(model, inputs, **options):
    """Runs pruned and compares with the model that prunes itself by hand, at the positions reported."""
    layer = options.get("layer", 1)
    logits, keys = compiled(model, **options)(**inputs)
    report = the_report()
    assert report.pruned
    expected, expected_keys = model(**inputs, cut={layer: report.kept})
    real = slice(None) if "attention_mask" not in inputs else inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(logits[real], expected[real], **CLOSE)
    assert [k.shape for k in keys] == [k.shape for k in expected_keys]
    for ours, theirs in zip(keys[: layer + 1], expected_keys, strict=False):
        assert_close(ours, theirs, **CLOSE)
    return report


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("pad", [None, [0, 3]])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("selector", ["sharp", "fastv", "uniform", "random", "diversity"])
def test_toy(eager, pad, layer, selector):
    rows = len(pad) if pad else 1
    report = check(Toy(eager=eager), toy_inputs(rows=rows, pad=pad), layer=layer, selector=selector, retention=0.25)
    length = 26 + max(pad or [0])
    assert (report.layer, report.num_layers) == (layer, 4)
    assert (report.sequence_length, report.pruned_length) == (length, length - 15)
    assert (report.visual_tokens, report.kept_tokens) == (20, 5)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3),
    visual=st.integers(1, 30),
    text=st.integers(2, 12),
    pad=st.integers(0, 4),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    head_dim=st.sampled_from([2, 4, 8]),
    layers=st.integers(2, 4),
    retention=st.floats(0.01, 1.0),
    layer=st.integers(0, 2),
    eager=st.booleans(),
)
def test_any_sizes(rows, visual, text, pad, heads, head_dim, layers, retention, layer, eager):
    torch._dynamo.reset()
    sharp_compile.reset()
    model = Toy(heads=heads[0], kv_heads=heads[1], head_dim=head_dim, layers=layers, eager=eager)
    padding = None if rows == 1 else [pad] + [0] * (rows - 1)
    inputs = toy_inputs(visual, text, rows=rows, pad=padding)
    if layer + 1 >= layers:
        with pytest.raises(CannotPrune, match=f"layer={layer}"):
            compiled(model, layer=layer)(**inputs)
    else:
        check(model, inputs, layer=layer, retention=retention, selector="fastv")


# Lengths that equal another size of the model, before or after pruning.
COLLISIONS = {
    "hidden": dict(model=dict(hidden=26), visual=20, text=6),
    "hidden after": dict(model=dict(hidden=11), visual=20, text=6),
    "heads": dict(model=dict(heads=8, kv_heads=4, hidden=16), visual=4, text=4),
    "heads after": dict(model=dict(heads=8, kv_heads=2), visual=8, text=6),
    "kv heads": dict(model=dict(heads=8, kv_heads=8), visual=4, text=4),
    "head_dim": dict(model=dict(head_dim=26), visual=20, text=6),
    "head_dim after": dict(model=dict(head_dim=8), visual=8, text=6),
    "heads * head_dim": dict(model=dict(heads=2, kv_heads=2, head_dim=16), visual=26, text=6),
    "mlp": dict(model=dict(hidden=13), visual=20, text=6),
    "rows": dict(model=dict(), visual=3, text=3, rows=6),
    "rows after": dict(model=dict(), visual=12, text=3, rows=6),
    "rows and heads": dict(model=dict(heads=4, kv_heads=4), visual=2, text=2, rows=4),
    "everything": dict(model=dict(hidden=8, heads=8, kv_heads=8, head_dim=8), visual=4, text=4, rows=8),
    "visual and text": dict(model=dict(hidden=20), visual=10, text=10),
    "vocabulary": dict(model=dict(), visual=40, text=10),
}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", COLLISIONS)
def test_sizes_that_collide(name, eager):
    case = dict(COLLISIONS[name])
    model = Toy(**case.pop("model"), eager=eager)
    inputs = toy_inputs(**case, hidden=model.embed.embedding_dim)
    try:
        check(model, inputs, retention=0.25, selector="uniform")
    except CannotPrune:
        assert not the_report().pruned


def test_full_retention_changes_nothing():
    model, inputs = Toy(), toy_inputs()
    logits, keys = compiled(model, retention=1.0)(**inputs)
    expected, expected_keys = model(**inputs)
    assert_close(logits, expected, **CLOSE)
    assert_close(keys, expected_keys, **CLOSE)
    assert the_report().kept.tolist() == [list(range(26))]


def test_stages():
    model, inputs = Toy(layers=5), toy_inputs(rows=2, pad=[0, 3])
    stages = [(0, 0.5), (2, 0.25), (3, 0.1)]
    logits, keys = compiled(model, stages=stages, selector="uniform")(**inputs)
    assert [key.shape[2] for key in keys] == [29, 19, 19, 14, 11]
    assert logits.shape[1] == 11
    assert the_report().kept.shape == (2, 11)


def test_gradients_flow_through_kept_tokens():
    model, inputs = Toy(), toy_inputs()
    inputs["features"].requires_grad_()
    logits, _ = compiled(model, inner="aot_eager", selector="fastv", retention=0.25)(**inputs)
    logits.square().sum().backward()
    actual = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    of_features = inputs["features"].grad.clone()
    model.zero_grad()
    inputs["features"].grad = None
    expected, _ = model(**inputs, cut={1: the_report().kept})
    expected.square().sum().backward()
    assert_close(of_features, inputs["features"].grad, atol=1e-4, rtol=1e-3)
    for name, parameter in model.named_parameters():
        assert_close(actual[name], parameter.grad, atol=1e-4, rtol=1e-3)


def counting():
    """An inner backend that counts the decoders that it compiles."""
    graphs = []

    def inner(module, inputs):
        graphs.append(module)
        return module.forward

    return inner, graphs


@pytest.mark.parametrize("dynamic", [None, True])
def test_many_lengths_compile_twice_at_most(dynamic):
    model, (inner, graphs) = Toy(), counting()
    fast = compiled(model, dynamic=dynamic, inner=inner, selector="sharp")
    for visual in (20, 30, 60, 25, 90, 41, 100, 33, *range(43, 79, 3)):
        inputs = toy_inputs(visual)
        logits, _ = fast(**inputs)
        kept = [r.kept for r in sharp_compile.reports() if r.kept is not None and r.kept.shape[1] == logits.shape[1]]
        assert_close(logits, model(**inputs, cut={1: kept[-1]})[0], **CLOSE)
    assert len(graphs) <= 2
    assert all(report.pruned for report in sharp_compile.reports())


def test_random_depends_on_seed_and_shapes_only():
    def kept(seed, times=1):
        torch._dynamo.reset()
        sharp_compile.reset()
        fast = compiled(Toy(), selector="random", seed=seed, retention=0.25)
        for _ in range(times):
            fast(**toy_inputs(rows=2))
        return the_report().kept.tolist()

    assert kept(0) == kept(0, times=3) != kept(1)
    assert kept(0)[0] != kept(0)[1]
    assert kept(2**62) != kept(0)


def test_random_leaves_the_generator_alone():
    fast = compiled(Toy(), selector="random")
    state = torch.random.get_rng_state()
    fast(**toy_inputs())
    assert state.equal(torch.random.get_rng_state())


def test_a_function_as_selector():
    seen = {}

    def score(ctx):
        for name in ("query", "key", "key_unrotated", "hidden", "is_visual", "is_padding", "frame"):
            seen[name] = tuple(getattr(ctx, name).shape)
        seen["scale"] = ctx.scale
        return ctx.hidden.norm(dim=-1)

    model, inputs = Toy(), toy_inputs()
    check(model, inputs, selector=score, retention=0.25)
    assert seen == {
        "query": (1, 4, 26, 8),
        "key": (1, 4, 26, 8),
        "key_unrotated": (1, 4, 26, 8),
        "hidden": (1, 26, 16),
        "is_visual": (1, 26),
        "is_padding": (1, 26),
        "frame": (1, 26),
        "scale": seen["scale"],
    }


@pytest.mark.parametrize(("inner", "dynamic"), [("aot_eager", None), ("eager", True)])
def test_a_function_may_hold_weights_of_its_own(inner, dynamic):
    learned = nn.Linear(16, 1, bias=False)
    with torch.no_grad():
        learned.weight.copy_(torch.linspace(-1, 1, 16))

    def spelled_out(ctx):
        return (ctx.hidden * torch.linspace(-1, 1, 16)).sum(-1)

    kept = []
    for score in (lambda ctx: learned(ctx.hidden)[..., 0], lambda ctx: ctx.hidden @ learned.weight[0], spelled_out):
        torch._dynamo.reset()
        sharp_compile.reset()
        compiled(Toy(), dynamic, selector=score, retention=0.25, inner=inner)(**toy_inputs())
        kept.append(sharp_compile.reports()[-1].kept.tolist())  # tracing may have begun anew
    assert kept[0] == kept[1] == kept[2]


def test_a_selector_that_returns_another_shape_is_named():
    with pytest.raises(ValueError, match=r"selector must return .* \[1, 26\], it returned a tensor \[1, 26, 16\]"):
        compiled(Toy(), selector=lambda ctx: ctx.hidden)(**toy_inputs())


def test_scores_that_are_not_finite_keep_the_right_number():
    report = check(Toy(), toy_inputs(), selector=lambda ctx: ctx.hidden[..., 0] * float("nan"), retention=0.25)
    assert report.kept.tolist() == [[0, 1, 2, 3, 4, 5, 6, 22, 23, 24, 25]]  # ties go to the lower position


@pytest.fixture
def one_row_of_text():
    inputs = toy_inputs(rows=2)
    inputs["ids"][1] = torch.randint(1, 49, (26,))
    return inputs


def test_a_row_without_enough_visual_tokens_is_an_error(one_row_of_text):
    fast = compiled(Toy(), retention=0.1)
    with pytest.raises(ValueError, match="row 1 of the batch has 26 text tokens"):
        fast(**one_row_of_text)


def test_a_row_without_enough_visual_tokens_runs_unpruned(one_row_of_text):
    model = Toy()
    fast = compiled(model, retention=0.1, on_skip="warn")
    fast(**toy_inputs(rows=2))
    with pytest.warns(UserWarning, match="unpruned.* row 1 of the batch has 26 text tokens"):
        result = fast(**one_row_of_text)
    assert_close(result, model(**one_row_of_text))
    assert the_report().kept is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_close(fast(**one_row_of_text), result)
        assert fast(**toy_inputs(rows=2))[0].shape[1] == 8
        compiled(model, retention=0.1, on_skip="silent")(**one_row_of_text)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_graph_that_writes_into_its_inputs_runs_once(dynamic, one_row_of_text):
    class Counts(Toy):
        def forward(self, ids, features, count):
            count.add_(1)
            return super().forward(ids, features)

    model, count = Counts(), torch.zeros(())
    fast = compiled(model, dynamic, retention=0.1, on_skip="warn")
    with pytest.warns(UserWarning, match="unpruned.* row 1 of the batch has 26 text tokens, but only 8 positions"):
        result = fast(**one_row_of_text, count=count)
    assert count == 1
    assert_close(result, Toy()(**one_row_of_text))
    assert fast(**toy_inputs(rows=2), count=count)[0].shape[1] == 8
    assert count == 2


@pytest.mark.parametrize(
    "options, named",
    [({"retention": 1.5}, "retention"), ({"selecter": "sharp"}, "selector"), ({"layer": -1}, "layer")],
)
def test_bad_options_are_value_errors_where_torch_hands_them_over_late(options, named):
    """Of a function that wraps the backend, they are seen when it is first called. (Else: `tests/test_api.py`.)"""
    fast = torch.compile(Toy(), backend=lambda graph, inputs: sharp(graph, inputs, options=options))
    with pytest.raises(ValueError, match=named):
        fast(**toy_inputs())


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"mode": "reduce-overhead"}, id="mode"),
        pytest.param({"options": {"inductor": {"triton.cudagraphs": True}}}, id="option", marks=pytest.mark.slow),
    ],
)
def test_graphs_for_cudagraphs_are_pruned(given):
    model = Toy()
    with torch.no_grad():
        actual, _ = torch.compile(model, backend="sharp", **given)(**toy_inputs())
        expected, _ = model(**toy_inputs(), cut={1: the_report().kept})
    assert_close(actual, expected, atol=1e-5, rtol=1e-4)


# What can't be pruned runs as it is, and says so.


class SharedBuffer(Toy):
    """Its later layers add to a buffer of full length: what a preallocated cache does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 26, 16))

    def forward(self, ids, features):
        logits, keys = super().forward(ids, features)
        self.seen.add_(logits[..., :16])
        return logits + self.seen.sum(), keys


class AddsFeaturesAgain(Toy):
    def forward(self, ids, features):
        logits, keys = super().forward(ids, features)
        where = (ids == 49).unsqueeze(-1).expand_as(logits)
        return logits.masked_scatter(where, features.repeat(1, 4)), keys


DECLINED = {
    "a buffer of full length": (SharedBuffer, "made before the cut"),
    "features added again": (AddsFeaturesAgain, "visual features are added again"),
    "no later layer": (lambda: Toy(layers=2), "layer=1 leaves no later layer"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_can_not_be_proven_is_declined(name):
    make, reason = DECLINED[name]
    expected = make()(**toy_inputs())
    with pytest.raises(CannotPrune, match=reason):
        compiled(make())(**toy_inputs())
    sharp_compile.reset()
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match=reason):
        actual = compiled(make(), on_skip="warn")(**toy_inputs())
    assert_close(actual, expected)
    assert not the_report().pruned
    assert the_report().kept is None
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled(make(), on_skip="silent")(**toy_inputs())


class Split(Toy):
    """Its decoder is in another graph than the injection."""

    def positions(self, hidden, attention_mask):
        torch._dynamo.graph_break()
        return super().positions(hidden, attention_mask)


# Some of these Dynamo would take for a break of the graph, in silence.
FAULTS = [ZeroDivisionError("of a pass"), IndexError("of a pass"), torch._dynamo.exc.Unsupported("of a pass")]


@pytest.mark.faults
@pytest.mark.parametrize("make", [Toy, Split])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_of_a_pass_is_no_fault_of_the_call(make, fault, monkeypatch):
    def fail(*_):
        raise fault

    monkeypatch.setattr("sharp_compile.passes.pipeline.check_whole", fail)
    model, inputs = make(), toy_inputs()
    with (
        logged("sharp_compile", logging.DEBUG) as messages,
        pytest.warns(UserWarning, match=rf"a fault of sharp_compile \({type(fault).__name__}: of a pass\)") as told,
    ):
        assert_close(compiled(model, on_skip="warn")(**inputs), model(**inputs))
    assert any("in fail" in message for message in messages)
    assert [str(warning.message) for warning in told if "sharp_compile" in str(warning.message)][1:] == []
    assert not any(report.pruned for report in sharp_compile.reports())
    torch._dynamo.reset()
    with pytest.raises((type(fault), RuntimeError), match="of a pass"):
        compiled(model)(**inputs)


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_a_model_without_visual_tokens_is_left_alone(inner):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_close(compiled(model, inner=inner)(x), model(x))
    assert not the_report().pruned
    assert "no visual tokens" in the_report().reason


def test_the_inner_backend_gets_an_untouched_graph_as_it_is():
    given = []
    fast = compiled(nn.Linear(3, 3), inner=lambda module, inputs: given.append(module) or module.forward)
    fast(torch.randn(2, 3))
    assert [node.op for node in given[0].graph.nodes].count("call_function") == 1


def test_inductor_and_its_options():
    model, inputs, seen = Toy(), toy_inputs(rows=2, pad=[0, 3]), []
    from torch._inductor import config

    def hook(graph):
        seen.append(config.max_autotune_gemm_backends)

    options = {"post_grad_custom_post_pass": hook, "max_autotune_gemm_backends": "ATEN"}
    with torch.no_grad():
        check(model, inputs, inner="inductor", inductor=options, selector="sharp", retention=0.25)
    assert set(seen) == {"ATEN"}  # for the graph, and for what equal layers share


FRESH = """
    import torch, transformers, sys
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2)).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert "sharp_compile" not in sys.modules
        fast = torch.compile(model, backend="sharp", options={"inner": "aot_eager"})
        torch.testing.assert_close(fast(ids).logits, expected)
    print("text model ok")
"""


def test_pip_install_is_enough():
    """A fresh process finds the backend without importing the package; a text model runs as it is."""
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:sharp_compile", "-c", textwrap.dedent(FRESH)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "text model ok" in run.stdout
    assert "unpruned" not in run.stderr

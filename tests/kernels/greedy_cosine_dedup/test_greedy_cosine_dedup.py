"""Deduplication: the definition on examples, all other forms against the definition."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sharp_compile.kernels.greedy_cosine_dedup import blocked, greedy_cosine_dedup, reference

try:
    from sharp_compile.kernels.greedy_cosine_dedup import triton as kernels

    from tests.kernels.interpreter import interpret
except ImportError:
    kernels = None

FORMS = ["blocked", pytest.param("triton", marks=pytest.mark.skipif(kernels is None, reason="needs Triton"))]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """A form that walks in blocks, with blocks that are small, so that few tokens are many blocks."""
    if request.param == "blocked":
        monkeypatch.setattr(blocked, "_BLOCK", 64)
        return blocked.greedy_cosine_dedup
    interpret(monkeypatch, kernels)
    return partial(kernels.greedy_cosine_dedup, how=kernels.Tiles(64, 32, 16, 2, 4, 1))


def similarities(vectors):
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    return unit @ unit.transpose(-1, -2)


def clear_threshold(vectors, low=0.6, high=0.95):
    """A threshold that no similarity is near to: no rounding moves one to its other side."""
    found = similarities(vectors).flatten()
    found = torch.cat([found[(found > low) & (found < high)], torch.tensor([low, high])]).sort().values
    widest = found.diff().argmax()
    assert found.diff()[widest] > 1e-5
    return ((found[widest] + found[widest + 1]) / 2).item()


def scene(seed, batch, length, features, dtype, kinds=0):
    """Vectors of several kinds with exact copies, copies of other lengths and zeros among them, and an order."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(batch, length, features, generator=generator)
    if kinds:
        centres = torch.randn(kinds, features, generator=generator)
        vectors = 0.3 * vectors + centres[torch.randint(kinds, (batch, length), generator=generator)]
    vectors[:, 1::7] = vectors[:, :1]
    vectors[:, 2::11] = 4 * vectors[:, :1]
    vectors[:, 3::13] = 0
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])
    return vectors.to(dtype), order


def test_the_definition():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]])
    order = torch.tensor([[2, 0, 3, 1, 6, 5, 4]])
    for function in (reference.greedy_cosine_dedup, greedy_cosine_dedup):
        skips = partial(function, vectors, order, threshold=0.9)
        everything = skips(torch.tensor([7]), torch.tensor([7]))
        assert everything.nonzero()[:, 1].tolist() == [0, 5]
        assert skips(torch.tensor([7]), torch.tensor([4])).nonzero()[:, 1].tolist() == [0]
        assert skips(torch.tensor([5]), torch.tensor([7])).nonzero()[:, 1].tolist() == [0]
        assert not skips(torch.tensor([7]), torch.tensor([1])).any()
        assert not skips(torch.tensor([7]), torch.tensor([0])).any()
        assert not skips(torch.tensor([0]), torch.tensor([7])).any()


def test_a_copy_of_a_skipped_token_is_kept():
    angles = torch.tensor([0.0, 0.4, 0.8, 1.2])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    args = (vectors, torch.arange(4)[None], torch.tensor([4]), torch.tensor([4]), 0.9)
    assert reference.greedy_cosine_dedup(*args).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "batch, length, features, kinds", [(2, 200, 4, 0), (1, 63, 33, 9), (3, 130, 17, 40), (1, 1, 5, 0), (2, 64, 3, 0)]
)
def test_equals_the_definition(form, dtype, batch, length, features, kinds):
    vectors, order = scene(length, batch, length, features, dtype, kinds)
    threshold = clear_threshold(vectors)
    for candidates, budget in ((length, length), (length * 2 // 3, length // 4)):
        # Ragged: every row has numbers of its own.
        candidates = (candidates - torch.arange(batch)).clamp_min(0)
        budget = (budget - 3 * torch.arange(batch)).clamp_min(0)
        args = (vectors, order, candidates, budget, threshold)
        actual = form(*args)
        assert actual.equal(reference.greedy_cosine_dedup(*args))
    assert actual.equal(form(*args))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_walk(form, data):
    batch, length = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 150))
    vectors, order = scene(data.draw(st.integers(0, 2**20)), batch, length, data.draw(st.integers(1, 6)), torch.float32)
    candidates = torch.tensor(data.draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch)))
    budget = torch.tensor(data.draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch)))
    args = (vectors, order, candidates, budget, clear_threshold(vectors, low=-0.5))
    assert form(*args).equal(reference.greedy_cosine_dedup(*args))


def test_a_long_chain(form):
    """Each token is a near copy of its neighbours only: as many rounds as there can be."""
    angles = torch.arange(130) * 0.02
    vectors = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    args = (vectors, torch.arange(130)[None], torch.tensor([130]), torch.tensor([130]), torch.tensor(0.03).cos().item())
    assert form(*args).equal((torch.arange(130) % 2 == 1)[None])


def test_all_alike_and_all_zero(form):
    full = torch.tensor([150])
    alike = torch.ones(1, 150, 5)
    expected = torch.ones(1, 150, dtype=torch.bool)
    order = torch.arange(149, -1, -1)[None]
    expected[0, 149] = False
    assert form(alike, order, full, full, 0.9).equal(expected)
    assert not form(torch.zeros(1, 150, 5), order, full, full, 0.0).any()
    assert form(torch.zeros(1, 150, 5), order, full, full, -0.5).equal(expected)


def test_any_strides(form):
    vectors, order = scene(5, 2, 140, 6, torch.float32)
    full = torch.tensor([140, 120])
    expected = reference.greedy_cosine_dedup(vectors, order, full, full, threshold := clear_threshold(vectors))
    turned = vectors.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert form(turned, order.t().contiguous().t(), full, full, threshold).equal(expected)


@pytest.mark.slow
@pytest.mark.skipif(kernels is None, reason="needs Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_blocks_that_are_launched(monkeypatch, dtype):
    interpret(monkeypatch, kernels)
    vectors, order = scene(6, 1, 600, 40, dtype, kinds=300)
    full = torch.tensor([600])
    args = (vectors, order, full, full, clear_threshold(vectors))
    actual = kernels.greedy_cosine_dedup(*args)
    assert actual.equal(reference.greedy_cosine_dedup(*args))
    assert 0 < actual.sum() < 500


def test_registration():
    vectors, order = scene(7, 2, 20, 4, torch.float32)
    args = (vectors, order, torch.tensor([20, 15]), torch.tensor([5, 20]), 0.8)
    torch.library.opcheck(torch.ops.sharp_compile.greedy_cosine_dedup.default, args)

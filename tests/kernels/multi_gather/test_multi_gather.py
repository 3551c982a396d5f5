"""Gathering several tensors: plain PyTorch against indexing, the Triton kernel and the operator against it."""

import pytest
import torch
from sharp_compile.kernels.multi_gather import multi_gather, ops, reference

try:
    from sharp_compile.kernels.multi_gather import triton as kernels

    from tests.kernels.interpreter import interpret
except ImportError:
    kernels = None

FORMS = ["reference", pytest.param("triton", marks=pytest.mark.skipif(kernels is None, reason="needs Triton"))]


@pytest.fixture(params=FORMS)
def gather(request, monkeypatch):
    if request.param == "reference":
        return reference.multi_gather
    interpret(monkeypatch, kernels)
    return kernels.multi_gather


def kept_positions(rows, kept, length):
    generator = torch.Generator().manual_seed(kept)
    return torch.stack([torch.randperm(length, generator=generator)[:kept].sort().values for _ in range(rows)])


def check(gather, values, positions):
    results = gather(values, positions)
    assert len(results) == len(values)
    for value, result in zip(values, results, strict=True):
        assert result.dtype == value.dtype and result.is_contiguous()
        for row, kept in enumerate(positions):
            assert result[row].equal(value[row if len(value) > 1 else 0][:, kept])


@pytest.mark.parametrize("rows, length, kept", [(2, 63, 7), (1, 257, 257), (3, 40, 1), (2, 9, 0)])
def test_types_and_sizes(gather, rows, length, kept):
    generator = torch.Generator().manual_seed(0)

    def numbers(*sizes):
        return torch.randn(sizes, generator=generator)

    values = [
        numbers(rows, 1, length, 130).bfloat16(),
        numbers(1, 3, length, 72).half(),
        numbers(rows, 2, length, 1),
        numbers(1, 1, length, 5).double(),
        numbers(rows, 1, length, 33) > 0,
        (100 * numbers(1, 3, length, 1)).long(),
        torch.complex(numbers(1, 1, length, 3), numbers(1, 1, length, 3)),
    ]
    check(gather, values, kept_positions(rows, kept, length))


def test_any_strides(gather):
    packed = torch.randn(2, 21, 4, 16)
    values = [
        packed.transpose(1, 2),
        packed.permute(0, 3, 1, 2),
        torch.randn(21, 5).expand(3, 21, 5)[None],
        torch.randn(1, 1, 21, 1).expand(2, 2, 21, 4),
        torch.randn(2, 2, 21, 40)[..., ::3],
    ]
    positions = kept_positions(2, 8, 21)
    check(gather, values, positions.t().contiguous().t())


@pytest.mark.parametrize("count", [0, 1, 8, 9, 17])
def test_any_number_of_tensors(gather, count):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(1, 1 + i % 3, 30, 1 + 7 * i, generator=generator) for i in range(count)]
    check(gather, values, kept_positions(1, 11, 30))


def test_gradients():
    positions = kept_positions(2, 4, 9)
    inputs = [torch.randn(2, 2, 9, 3), torch.randn(1, 1, 9, 2), torch.randn(2, 1, 9, 1)]
    for function in (ops.multi_gather, multi_gather):
        values = [value.clone().requires_grad_() for value in inputs]
        results = function([*values, torch.arange(9).view(1, 1, 9, 1)], positions)
        assert not results[3].requires_grad
        (results[0].square().sum() + results[1].square().sum()).backward()
        for value in values[:2]:
            times = torch.zeros(2, 9).scatter(1, positions, 1.0)
            times = (times if len(value) == 2 else times.sum(0, keepdim=True))[:, None, :, None]
            torch.testing.assert_close(value.grad, 2 * value.detach() * times)
        assert values[2].grad is None or values[2].grad.eq(0).all()


def test_lengths_stay_symbolic():
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    fast = torch.compile(lambda v, p: multi_gather([v, v[:1]], p), backend=backend, dynamic=True)
    for length, kept in ((9, 4), (20, 3), (33, 30)):
        value, positions = torch.randn(2, 3, length, 5), kept_positions(2, kept, length)
        assert [result.shape for result in fast(value, positions)] == [(2, 3, kept, 5)] * 2
    assert len(graphs) == 1
    assert "sharp_compile" not in str(graphs[0].graph)


def test_registration():
    values = [torch.randn(2, 2, 9, 3, requires_grad=True), torch.arange(9).view(1, 1, 9, 1)]
    torch.library.opcheck(ops.multi_gather, (values, kept_positions(2, 4, 9)))

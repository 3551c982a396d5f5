"""The comparison of kernels with their definitions: right as they are, wrong with a wrong constant."""

import pytest
import torch
from sharp_compile.kernels import causal_attention, masked_attention
from sharp_compile.kernels.attention_column_sums import aten
from sharp_compile.kernels.greedy_cosine_dedup import blocked

from sharp_compile.tools.check import kernels

try:
    import triton.language as tl
    from sharp_compile.kernels.attention_column_sums import triton as column_sums
    from sharp_compile.kernels.greedy_cosine_dedup import triton as dedup
    from sharp_compile.kernels.multi_gather import triton as gather

    from tests.kernels.interpreter import interpret
except ImportError:
    column_sums = None

needs_triton = pytest.mark.skipif(column_sums is None, reason="needs Triton")


def verdicts(cases, dtype=torch.float32):
    return {each.name: each for each in kernels._verdicts(cases, (dtype,), "")}


@pytest.fixture
def interpreted(monkeypatch):
    interpret(monkeypatch, column_sums, dedup, gather)


@needs_triton
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_triton_kernels_are_right(dtype):
    found = verdicts(kernels._triton_cases("cpu"), dtype)
    assert [each.right for each in found.values()] == [True] * 3
    assert found["multi_gather, " + str(dtype).removeprefix("torch.")].told == "2 cases, the same to the bit"


def test_what_runs_on_a_cpu_is_right():
    found = [each for each in kernels._verdicts(kernels._plain_cases(), (torch.float32, torch.bfloat16), "")]
    assert [each.right for each in found] == [True] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_without_a_mask_is_right(dtype):
    causal, masked = verdicts(kernels._attention_cases("cpu"), dtype).values()
    assert (causal.right, masked.right) == (True, True)
    assert causal.told.startswith("4 cases, off by ") and masked.told.startswith("3 cases, off by ")


@pytest.fixture
def by_lengths(monkeypatch):
    """Padding goes the way of a GPU, with PyTorch's attention in place of the kernel that is there alone."""

    def of_lengths(query, key, value, bounds, longest, scale):
        output = torch.full_like(query, torch.nan)
        for start, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False):
            tokens_last = (each[start:end].transpose(0, 1) for each in (query, key, value))
            part = torch.nn.functional.scaled_dot_product_attention(
                *tokens_last, is_causal=True, scale=scale, enable_gqa=True
            )
            output[start:end] = part.transpose(0, 1)
        return output

    def attention(query, key, value, visible, scale):
        length = query.shape[2]
        return causal_attention.by_lengths(query, key[:, :, :length], value[:, :, :length], visible, scale)

    monkeypatch.setattr(causal_attention, "flash_of_lengths", of_lengths)
    monkeypatch.setattr(causal_attention, "causal_attention", attention)


@pytest.mark.usefixtures("by_lengths")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_path_of_a_gpu_is_compared_too(dtype):
    (found,) = verdicts({"causal_attention": kernels._causal_cases("cpu")}, dtype).values()
    assert found.right is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wrong_attention_without_a_mask(monkeypatch, dtype):
    causal, masked = causal_attention.causal_attention, masked_attention.masked_attention
    monkeypatch.setattr(causal_attention, "causal_attention", lambda *given: causal(*given[:4], 0.27))
    monkeypatch.setattr(
        masked_attention, "masked_attention", lambda *given: masked(*given[:4], given[4].add(1), *given[5:])
    )
    found = verdicts(kernels._attention_cases("cpu"), dtype).values()
    assert [each.right for each in found] == [False, False]


@pytest.mark.parametrize("case", kernels._causal_cases("cpu"))
def test_padding_that_is_seen_is_wrong(monkeypatch, case):
    right = causal_attention.causal_attention
    monkeypatch.setattr(
        causal_attention,
        "causal_attention",
        lambda query, key, value, visible, scale: right(query, key, value, torch.ones_like(visible), scale),
    )
    for dtype in (torch.float32, torch.bfloat16):
        (found,) = verdicts({"causal_attention": {case: kernels._causal_cases("cpu")[case]}}, dtype).values()
        # No real token comes after padding that is behind them all.
        assert found.right is case.startswith(("no padding", "padding behind"))


def test_another_type_is_wrong(monkeypatch):
    right = causal_attention.causal_attention
    monkeypatch.setattr(causal_attention, "causal_attention", lambda *given: right(*given).float())
    (found,) = verdicts({"causal_attention": kernels._causal_cases("cpu")}, torch.bfloat16).values()
    assert found.right is False
    assert "torch.float32 of [502, 7, 64] instead of torch.bfloat16 of [502, 7, 64]" in found.told


def test_names_on_a_cpu_and_on_a_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "_triton_cases", lambda device: {})
    for each in ("_plain_cases", "_causal_cases", "_masked_cases"):
        monkeypatch.setattr(kernels, each, lambda *device: {})
    names = [[each.name for each in kernels.check(device)] for device in ("cpu", "cuda")]
    assert names == [
        [
            f"{kernel}, {dtype}{note}"
            for kernel in ("causal_attention", "masked_attention")
            for dtype in ("float32", "bfloat16")
        ]
        for note in (" (plain PyTorch)", "")
    ]


@needs_triton
@pytest.mark.usefixtures("interpreted")
def test_wrong_constants_in_triton_kernels(monkeypatch):
    monkeypatch.setattr(column_sums, "_LOG2_E", tl.constexpr(1.45))
    right = gather.multi_gather
    monkeypatch.setattr(gather, "multi_gather", lambda values, positions: right(values, positions.sub(1).clamp_min(0)))
    walk = dedup.greedy_cosine_dedup
    monkeypatch.setattr(dedup, "greedy_cosine_dedup", lambda *given, how: walk(*given[:4], 0.999, how))
    found = verdicts(kernels._triton_cases("cpu"))
    assert [each.right for each in found.values()] == [False] * 3
    assert found["attention_column_sums, float32"].told.startswith("7 query heads a key head, 11 rows: off by ")


def test_an_error_is_told(monkeypatch):
    def fails(*given):
        raise RuntimeError("an illegal memory access\nand a page of advice")

    monkeypatch.setattr(aten, "attention_column_sums", fails)
    monkeypatch.setattr(blocked, "greedy_cosine_dedup", lambda vectors, *given: vectors[..., 0].float() * torch.nan)
    sums, walked = verdicts(kernels._plain_cases()).values()
    assert (sums.right, walked.right) == (False, False)
    assert sums.told == "7 query heads a key head, 11 rows: RuntimeError: an illegal memory access"


def test_cases_of_deduplication_stay_clear_of_the_threshold(monkeypatch):
    seen = []
    monkeypatch.setattr(
        blocked, "greedy_cosine_dedup", lambda vectors, *given: seen.append(vectors) or torch.zeros(1, dtype=torch.bool)
    )
    for dtype in (torch.float32, torch.bfloat16):
        verdicts({"dedup": kernels._dedup_cases(blocked.greedy_cosine_dedup, "cpu")}, dtype)
    assert seen
    for vectors in seen:
        unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
        assert ((unit @ unit.mT - 0.85).abs() > 0.05).all()

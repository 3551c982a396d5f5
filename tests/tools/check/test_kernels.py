"""The comparison of kernels with their definitions: right as they are, wrong with a wrong constant."""

import pytest
import torch
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

"""What is told of pruned prefills beside their times: waits for the device, and peaks."""

import pytest
import torch

from sharp_compile.tools.check import prefill
from sharp_compile.tools.check.peaks import compared
from sharp_compile.tools.check.plan import Round, Way, plan
from sharp_compile.tools.check.rows import Prefill

SHARP = Way("sharp", 0.1)
ROUND = Round(1568, True, (SHARP,))


@pytest.fixture
def modes(monkeypatch):
    """Those that torch was set to."""
    seen = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", seen.append)
    return seen


def test_a_call_that_waits_for_nothing(modes):
    during = []
    found = prefill._waits(ROUND, SHARP, lambda: during.append(list(modes)), "cuda")
    assert found.name == "no synchronisation: sharp, 10%, 1,568 tokens, with a mask"
    assert found.right is True
    assert during == [[], ["error"]]
    assert modes == ["error", "default"]


def test_a_call_that_waits(modes):
    def call():
        if modes:
            raise RuntimeError("called a synchronizing CUDA operation")

    found = prefill._waits(ROUND, SHARP, call, "cuda")
    assert found.right is False
    assert found.told.startswith("RuntimeError: called a synchronizing CUDA operation (")
    assert "test_prefill.py" in found.told and "raise RuntimeError" in found.told
    assert modes == ["error", "default"]


def test_out_of_memory_is_not_wrong(modes):
    def call():
        raise torch.OutOfMemoryError

    assert prefill._waits(ROUND, SHARP, call, "cuda").right is None
    assert modes == ["default"]


def test_a_cpu_is_not_waited_for(modes):
    found = prefill._waits(ROUND, SHARP, lambda: pytest.fail("was called"), "cpu")
    assert (found.right, found.told, modes) == (None, "a CPU is no device to wait for", [])


def row(visual, mask, peak, way="sharp", retention=0.1):
    times = {"median_s": 1.0, "spread_s": 0.0, "first_token_s": 1.0, "repeats": 3}
    return Prefill(way, visual, retention, mask, visual + 32, 99, peak_bytes=peak, **times)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("peak", "right"), [(900, True), (1099, True), (1101, False), (2000, False)])
def test_a_mask_costs_no_memory(peak, right, order):
    (found,) = compared([row(1000, False, 1000), row(1000, True, peak)][::order])
    assert found.name == "peak of sharp, 10%, 1,000 tokens, with a mask beside none"
    assert found.right is right
    assert found.told == f"{peak / 1000:.2f} times as much, and may be 1.10 times"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("peak", "right"), [(2000, True), (2160, True), (2170, False), (4000, False)])
def test_the_peak_grows_with_the_length(peak, right, order):
    (found,) = compared([row(1968, True, 1000), row(3904, True, peak)][::order])
    assert found.name == "peak of sharp, 10%, 3,904 tokens, with a mask beside that of 1,968"
    assert found.right is right


def test_only_what_is_alike_is_compared():
    last = row(1000, True, 10)
    others = [
        row(1000, False, 1, "inductor", None),
        row(1000, False, 1, retention=0.05),
        row(2000, False, 1),
        row(1000, False, 1, "sharp, cudagraphs"),
    ]
    assert not list(compared([*others, last]))
    assert not list(compared([last, row(1000, False, 1, "inductor", None)]))
    assert not list(compared([last]))


def test_the_plan_of_a_cpu_has_what_peaks_are_compared_with():
    rows = [row(each.visual_tokens, each.mask, 1) for each in plan("cpu").rounds]
    names = [each.name for number in range(len(rows)) for each in compared(rows[: number + 1])]
    assert [name.rpartition(", ")[2] for name in names] == [
        "with a mask beside that of 1,568",
        "with a mask beside none",
    ]

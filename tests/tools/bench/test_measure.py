"""Memory and rates."""

import pytest
import torch

from sharp_compile.tools.bench import measure


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the memory of the CPU")
def test_the_most_that_is_held_at_a_time():
    def call():
        first = torch.zeros(1000, 1000)  # 4 MB
        second = first + 1
        del first
        third = second + 1
        del second
        return third

    assert measure.peak_bytes(call) == pytest.approx(8e6, rel=0.01)


def test_the_roofline_is_the_slower_of_two():
    machine = measure.Machine(flops=100.0, bandwidth=10.0)
    assert machine.roofline(1000, 10) == 10.0
    assert machine.roofline(100, 200) == 20.0


def test_a_machine_has_rates():
    machine = measure.best_of(torch.float32, "cpu")
    assert machine.flops > 1e8 and machine.bandwidth > 1e8


@pytest.mark.skipif(torch.cuda.is_available(), reason="profiles the CPU")
def test_time_goes_to_the_outermost_operator_of_a_kind():
    query = torch.randn(1, 4, 2000, 64)
    candidates, count = torch.ones(1, 2000, dtype=torch.bool), torch.tensor([200])

    def call():
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
        return torch.ops.sharp_compile.farthest_point_ranking(query[:, 0], candidates, count, 200)

    found = measure.seconds_by_kind(call)
    assert list(found) == list(measure.KINDS)
    assert found["attention"] > 0 and found["scoring"] > 0
    # The products that the scoring asks for are part of it.
    assert found["products"] == 0
    assert measure.seconds_by_kind(lambda: query @ query.mT)["products"] > 0

"""Turns, medians, memory, rates."""

import pytest
import torch

from sharp_compile.bench import measure


def test_functions_are_timed_in_turns_after_a_first_call_each(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(measure, "synchronizing_clock", lambda: clock[0])
    durations = {"fast": iter([9.0, 1.0, 2.0, 4.0]), "slow": iter([5.0, 7.0, 6.0, 8.0])}

    def call(name):
        def run():
            order.append(name)
            clock[0] += next(durations[name])

        return run

    timings = measure.interleave({name: call(name) for name in durations}, 3, tick=lambda name: None)
    assert order == ["fast", "slow"] * 4
    assert (timings["fast"].median, timings["fast"].compilation) == (2.0, 7.0)
    assert (timings["slow"].median, timings["slow"].compilation) == (7.0, 0.0)
    assert timings["fast"].spread > 0


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

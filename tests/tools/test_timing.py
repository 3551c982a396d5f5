"""Turns, and medians."""

import pytest
import torch

from sharp_compile.tools import timing


def test_functions_are_timed_in_turns_after_a_first_call_each(monkeypatch):
    clock, order, ticks = [0.0], [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(timing, "synchronizing_clock", lambda: clock[0])
    durations = {"fast": iter([9.0, 1.0, 2.0, 4.0]), "slow": iter([5.0, 7.0, 6.0, 8.0])}

    def call(name):
        def run():
            order.append(name)
            clock[0] += next(durations[name])

        return run

    timings = timing.interleave({name: call(name) for name in durations}, 3, ticks.append)
    assert ticks == order == ["fast", "slow"] * 4
    assert (timings["fast"].median, timings["fast"].compilation) == (2.0, 7.0)
    assert (timings["slow"].median, timings["slow"].compilation) == (7.0, 0.0)
    assert timings["fast"].spread > 0


def test_on_cuda_events_around_the_call_tell_the_time(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("record")

        def synchronize(self):
            order.append("synchronize")

        def elapsed_time(self, end):
            assert end is not self
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert timing.seconds_of(lambda: order.append("call")) == pytest.approx(0.25)
    assert order == ["record", "call", "record", "synchronize"]

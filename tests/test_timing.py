"""Turns, and medians."""

from sharp_compile import timing


def test_functions_are_timed_in_turns_after_a_first_call_each(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing, "synchronizing_clock", lambda: clock[0])
    durations = {"fast": iter([9.0, 1.0, 2.0, 4.0]), "slow": iter([5.0, 7.0, 6.0, 8.0])}

    def call(name):
        def run():
            order.append(name)
            clock[0] += next(durations[name])

        return run

    timings = timing.interleave({name: call(name) for name in durations}, 3, tick=lambda name: None)
    assert order == ["fast", "slow"] * 4
    assert (timings["fast"].median, timings["fast"].compilation) == (2.0, 7.0)
    assert (timings["slow"].median, timings["slow"].compilation) == (7.0, 0.0)
    assert timings["fast"].spread > 0

"""Regions of Dynamo's cache last while a thread is in them."""

import threading

import pytest
import torch
from torch._dynamo import eval_frame

from tests.test_threads import check
from tests.toy import Toy, toy_inputs

pytestmark = pytest.mark.skipif(
    not hasattr(eval_frame, "set_eval_frame_isolate_recompiles_id"), reason="this torch has no regions"
)


def test_who_leaves_takes_the_region_of_no_other_thread():
    """A thread is in a compiled function before this one is, and leaves it in the middle of this one's call."""
    model, compiled, entered, may_leave = Toy(), [], threading.Event(), threading.Event()
    other = threading.Thread(target=torch.compile(lambda: wait(), backend="eager"))

    def inner(module, example):
        compiled.append(module)
        return module.forward

    @torch.compiler.disable
    def wait():
        entered.set()
        may_leave.wait(60)

    @torch.compiler.disable
    def let_leave():
        if other.is_alive():
            may_leave.set()
            other.join(60)

    class Interrupted(torch.nn.Module):
        def forward(self, **inputs):
            let_leave()
            return model(**inputs)

    fast = torch.compile(Interrupted(), backend="sharp", options={"inner": inner, "retention": 0.25})
    check(fast, model, toy_inputs())
    other.start()
    assert entered.wait(60)
    check(fast, model, toy_inputs())
    assert len(compiled) == 1


@pytest.mark.skipif(
    not hasattr(getattr(eval_frame, "set_eval_frame_isolate_recompiles_id", None), "__wrapped__"),
    reason="each thread has a region of its own in this torch",
)
def test_the_region_of_another_thread_is_given_back():
    enter, current = eval_frame.set_eval_frame_isolate_recompiles_id, eval_frame.get_eval_frame_isolate_recompiles_id
    entered, may_leave = threading.Event(), threading.Event()

    def other():
        assert enter(8) == -1
        entered.set()
        may_leave.wait(60)
        assert enter(-1) == 8

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(60)
    assert enter(7) == -1 and current() == 7
    assert enter(-1) == 7 and current() == 8
    may_leave.set()
    thread.join(60)
    assert current() == -1

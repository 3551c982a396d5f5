"""A call that takes long because it is compiled says so: once, and of this backend alone."""

import logging
import time

import pytest
import torch

from sharp_compile.integrations import first_call
from tests.support import logged
from tests.toy import Toy, toy_inputs


@pytest.fixture
def told(monkeypatch):
    """What was said, where a compilation that takes a tenth of a second is long."""
    monkeypatch.setattr(first_call, "AFTER", 0.1)
    monkeypatch.setattr(first_call._first_call, "told", False)
    torch._dynamo.reset()
    with logged(first_call.log.name, logging.WARNING) as messages:
        yield messages
    torch._dynamo.reset()


def slow(module, _):
    time.sleep(0.3)
    return module.forward


def run(backend, **options):
    torch.compile(Toy(), backend=backend, **({"options": options} if options else {}))(**toy_inputs())


def test_said_once(told):
    run("sharp", inner=slow)
    (message,) = told
    assert "once for each kind of call (now: " in message
    torch._dynamo.reset()
    run("sharp", inner=slow, retention=0.5)
    assert len(told) == 1


def test_not_of_another_backend_and_not_where_silence_was_asked_for(told):
    run(slow)
    run("sharp", inner=slow, on_skip="silent")
    assert not told


def test_not_of_what_is_quick(told, monkeypatch):
    monkeypatch.setattr(first_call, "AFTER", 60)
    run("sharp", inner="eager")
    assert not told
    assert not first_call._first_call.timer.is_alive() or first_call._first_call.timer.finished.is_set()

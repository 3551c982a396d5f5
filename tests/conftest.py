"""What every test starts from: nothing compiled, nothing reported."""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import sharp_compile
from tests.rotation import seed
from tests.table import write_table

# Tracing makes millions of objects that live for long; by default they are all looked through again and again.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

# The models of the tests are tiny: more threads than one only wait for each other.
torch.set_num_threads(1)

# How long an example takes depends on what else the machine does. A change is judged by the cases that it can change;
# another seed draws others each time, and `--hypothesis-seed` draws them again.
settings.register_profile("default", deadline=None, derandomize=seed() == 0)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def forget_compilations(request):
    """A fault of a pass is no end of a user's call, but it is one of a test's."""
    torch._dynamo.reset()
    sharp_compile.reset()
    yield
    if request.node.get_closest_marker("faults") is None:
        assert not [
            made.reason for made in sharp_compile.reports() if made.reason.startswith("a fault of sharp_compile")
        ]


@pytest.fixture
def room_for_many_graphs():
    """Lets a model be called in many ways.

    Each way adds graphs of the same functions, of which Dynamo compiles 8; then it runs them eagerly, unpruned.
    """
    with torch._dynamo.config.patch(recompile_limit=64):
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker("torchvision") and importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision")


def pytest_addoption(parser):
    parser.addoption("--table", type=Path, help="write what became of each architecture to this page")


def pytest_report_header():
    return f"cases that take turns: SHARP_TEST_SEED={seed()}"


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("--table")
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    told = [(report, value) for report in reports for key, value in report.user_properties if key == "outcome"]
    if path is not None:
        wrong = {tuple(value[:3]) for report, value in told if report.failed}
        write_table(path, [tuple(value) for _, value in told], {tuple(value[:3]) for _, value in told} - wrong)

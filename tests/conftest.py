"""What every test starts from: nothing compiled, nothing reported."""

import pytest
import torch

import sharp_compile

# The models of the tests are tiny: more threads than one only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def forget_compilations():
    torch._dynamo.reset()
    sharp_compile.reset()


@pytest.fixture
def room_for_many_graphs():
    """Lets a model be called in many ways.

    Each way adds graphs of the same functions, of which Dynamo compiles 8; then it runs them eagerly, unpruned.
    """
    with torch._dynamo.config.patch(recompile_limit=64):
        yield

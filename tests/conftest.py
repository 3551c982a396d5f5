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

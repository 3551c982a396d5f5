"""Numbers that are read while a program is traced: those of the example, and checked when it runs."""

import pytest
import torch
from torch import nn

from sharp_compile.programs.known_values import KnownValues


class Reading(nn.Module):
    """Calls a function with its inputs known."""

    def __init__(self, function, **examples):
        super().__init__()
        self.function, self.examples = function, examples

    def forward(self, x, sizes):
        with KnownValues({"x": x, "sizes": sizes}, self.examples):
            return self.function(x, sizes)


def export(function, x, sizes):
    module = Reading(function, x=x, sizes=sizes)
    return torch.export.export(module, (x, sizes)).module()


def split(x, sizes):
    return torch.cat([part.mean(0, keepdim=True) for part in x.split(sizes.tolist())])


def viewed(x, sizes):
    height, width = sizes.unbind()
    return x.reshape(height, width, -1).transpose(0, 1)


def counted(x, sizes):
    return torch.stack([x[: int(size)].sum() for size in sizes]) + sizes.max().item()


def masked(x, sizes):
    places = torch.arange(len(x))
    return x[places < sizes[0]] * 2


@pytest.mark.parametrize("function", [split, viewed, counted, masked])
def test_a_program_gives_what_the_code_does(function):
    x, sizes = torch.randn(6, 4), torch.tensor([2, 3]) if function is viewed else torch.tensor([2, 4])
    program = export(function, x, sizes)
    other = torch.randn(6, 4)
    assert torch.equal(program(other, sizes), function(other, sizes))


@pytest.mark.parametrize("function", [split, viewed, counted, masked])
def test_other_numbers_are_an_error(function):
    x, sizes = torch.randn(6, 4), torch.tensor([2, 3]) if function is viewed else torch.tensor([2, 4])
    program = export(function, x, sizes)
    with pytest.raises(RuntimeError, match="this program is for inputs in which the model reads"):
        program(x, sizes.flip(0) if function is not masked else sizes + 1)


def test_what_is_written_into_by_others_is_forgotten():
    weight = torch.tensor([1])

    def overwritten(x, sizes):
        sizes = sizes.clone()
        sizes[:1] = weight.to(sizes.dtype) + x.shape[1]
        return x * sizes.sum()

    x, sizes = torch.randn(6, 4), torch.tensor([2, 4])
    program = export(overwritten, x, sizes)
    assert torch.equal(program(x, sizes), overwritten(x, sizes))

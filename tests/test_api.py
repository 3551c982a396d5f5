"""`sharp_compile.compile`: what it hands to torch, and what it refuses where the call is made."""

import pytest
import torch

import sharp_compile
from tests.toy import Toy, toy_inputs

OPTIONS = {"inner": "eager", "retention": 0.25}
DOORS = {
    "compile": lambda model, options: sharp_compile.compile(model, **options),
    "module": lambda model, options: model.compile(backend="sharp", options=options),
    "torch": lambda model, options: torch.compile(model, backend="sharp", options=options),
    "function": lambda model, options: torch.compile(model.forward, backend="sharp", options=options),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_bad_option_is_refused_where_something_is_compiled(door):
    model = Toy()
    with pytest.raises(ValueError, match=r"^option retension=0\.1: no such option, .* name is 'retention'$"):
        DOORS[door](model, {"retension": 0.1})
    assert model._compiled_call_impl is None


def test_a_mode_is_refused_where_something_is_compiled():
    with pytest.raises(ValueError, match="mode='max-autotune' is no option of"):
        torch.compile(Toy(), backend="sharp", mode="max-autotune")


def test_dynamic_shapes_from_the_first_call():
    model = sharp_compile.compile(Toy(), dynamic=True, **OPTIONS)
    model(**toy_inputs())
    (report,) = sharp_compile.reports()
    assert report.pruned and isinstance(report.sequence_length, str)


class Breaking(Toy):
    def forward(self, **inputs):
        output = super().forward(**inputs)
        torch._dynamo.graph_break()
        return output


def test_the_whole_graph_or_an_error():
    sharp_compile.compile(Breaking(), **OPTIONS)(**toy_inputs())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        sharp_compile.compile(Breaking(), fullgraph=True, **OPTIONS)(**toy_inputs())


def test_disabled_nothing_is_compiled():
    sharp_compile.compile(Toy(), disable=True, **OPTIONS)(**toy_inputs())
    assert sharp_compile.reports() == []

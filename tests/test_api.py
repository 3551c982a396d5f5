"""`sharp_compile.compile`: what it hands to torch, and what it refuses where the call is made."""

import pytest
import torch

import sharp_compile
from sharp_compile.backend.entry import setting_of, sharp
from sharp_compile.integrations.marked import options_of
from sharp_compile.options import Config
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


def test_an_unknown_mode_is_refused_where_something_is_compiled():
    for compile in (torch.compile, torch.nn.Module.compile):
        with pytest.raises(ValueError, match=r"mode='fastest' is none of Inductor's modes: .*'reduce-overhead'"):
            compile(Toy(), backend="sharp", mode="fastest")
    with pytest.raises(ValueError, match="mode='fastest'"):
        sharp_compile.compile(Toy(), mode="fastest")


def test_two_modes_are_two_settings():
    backends = [torch._TorchCompileWrapper(sharp, mode, None, None) for mode in (None, "default", "reduce-overhead")]
    plain, default, graphs = map(setting_of, backends)
    assert plain == default == Config.parse()
    assert graphs == Config.parse({"inductor": {"triton.cudagraphs": True}})


def test_a_mode_beside_options():
    """Those of Inductor's that the user gives come first."""
    model = Toy()
    own = {"max_autotune": False, "coordinate-descent-tuning": False}
    sharp_compile.compile(model, mode="max-autotune", retention=0.25, inductor=own)
    config = Config.parse(options_of(model))
    assert dict(config.inductor) == {
        "max_autotune": False,
        "triton.cudagraphs": True,
        "coordinate_descent_tuning": False,
    }
    assert config.cuts == Config.parse({"retention": 0.25}).cuts


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

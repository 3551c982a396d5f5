"""What `sharp_compile.compile` does beside compiling: tells of visual tokens, compiles a model's own `generate`."""

from copy import deepcopy

import torch
from torch import nn

import sharp_compile
from tests.architectures import ALL_ARCHITECTURES, shared_model, visual_mask
from tests.support import forward


def compiled(name):
    return sharp_compile.compile(deepcopy(shared_model(name)), inner="eager", retention=0.25)


def test_a_generate_of_the_models_own_compiles_the_parts_that_it_calls():
    model = compiled("instructblipvideo")
    assert model.language_model._compiled_call_impl is not None


def test_a_generate_of_the_models_own_is_pruned_where_the_model_is_compiled_as_any():
    model, stock = deepcopy(shared_model("instructblipvideo")), shared_model("instructblipvideo")
    inputs = ALL_ARCHITECTURES["instructblipvideo"].inputs(model)
    model.compile(backend="sharp", options={"inner": "eager", "retention": 1.0, "on_skip": "raise"})
    options = {"max_new_tokens": 3, "do_sample": False}
    assert model.generate(**inputs, **options).equal(stock.generate(**inputs, **options))
    assert [report.pruned for report in sharp_compile.reports()].count(True) == 1
    assert stock.language_model._compiled_call_impl is None


def test_a_deep_copy_is_not_compiled():
    """And generates by itself: with other weights it gives another answer."""
    model = compiled("instructblipvideo")
    inputs = ALL_ARCHITECTURES["instructblipvideo"].inputs(model)
    copy = deepcopy(model)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert copy.language_model._compiled_call_impl is None
    assert copy.generate(**inputs, **options).equal(shared_model("instructblipvideo").generate(**inputs, **options))
    assert sharp_compile.reports() == []
    with torch.no_grad():
        copy.language_model.lm_head.weight.zero_()
    assert len(copy.generate(**inputs, **options)[0, -3:].unique()) == 1


def test_a_model_that_generates_as_all_do_is_left_alone():
    model = compiled("llava_onevision")
    assert "generate" not in vars(model)
    assert model.model.language_model._compiled_call_impl is None


class Wrapping(nn.Module):
    """Hands everything on to a model, as a PEFT model does."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *args, **kwargs):
        return self.inside(*args, **kwargs)

    def __getattr__(self, name):
        modules = vars(self)["_modules"]
        return modules[name] if name in modules else getattr(modules["inside"], name)


def test_a_model_that_wraps_another_is_compiled_inside_too():
    """Its `generate` is that of the model inside, which calls itself."""
    model = Wrapping(deepcopy(shared_model("llava_onevision")))
    sharp_compile.compile(model, inner="eager")
    assert model._compiled_call_impl is not None and model.inside._compiled_call_impl is not None


def test_no_model_of_transformers():
    model = torch.nn.Linear(2, 2)
    assert sharp_compile.compile(model, inner="eager") is model
    assert not hasattr(model, "generate")


def test_a_call_tells_of_its_own_visual_tokens_only(monkeypatch):
    """Ids by place or by name, and a call without them tells nothing."""
    model, told = deepcopy(shared_model("ovis2")), []
    inputs = ALL_ARCHITECTURES["ovis2"].inputs(model)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: vars(self).update(_compiled_call_impl=see))

    def see(*args, **kwargs):
        told.append(sharp_compile.visual_annotation._annotated.get())

    fast = sharp_compile.compile(model)
    forward(fast, inputs)
    fast(inputs["input_ids"])
    fast(inputs_embeds=torch.zeros(1, 3, 4))
    by_name, by_place, nothing = told
    assert by_name.equal(visual_mask(model, inputs)) and by_place.equal(by_name)
    assert nothing is None

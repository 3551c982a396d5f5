"""What ``export`` and ``export_decode`` refuse."""

import pytest
import torch

import sharp_compile
from tests.architectures import text_only
from tests.programs.families import RETENTION, inputs_of, model_of, programs

NAME = "internvl"


@pytest.fixture
def model():
    return model_of(NAME)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retention": 2}, "option retention=2: must be a number above 0"),
        ({"retenton": 0.1}, "retenton=0.1: neither an option nor an argument.*retention"),
        ({"selector": "sharpest"}, "option selector='sharpest'"),
        ({"inner": "eager"}, "option inner='eager': a program is not compiled"),
        ({"on_skip": "warn"}, "option on_skip='warn': a program is not compiled"),
        ({"dynamic": 1}, "dynamic=1: must be True or False"),
        ({"past_key_values": 1}, "past_key_values=1: the program begins with an empty cache"),
        ({"pixel_values": [torch.ones(1)]}, "pixel_values=.*tensors inside of others"),
    ],
)
def test_bad_arguments(model, given, message):
    with pytest.raises(ValueError, match=message):
        sharp_compile.export(model, **inputs_of(NAME, 12) | given)


def test_no_inputs(model):
    with pytest.raises(ValueError, match="needs an example of the inputs"):
        sharp_compile.export(model, retention=0.1)


def test_a_model_in_training_mode(model):
    model.train()
    try:
        with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
            sharp_compile.export(model, **inputs_of(NAME, 12))
    finally:
        model.eval()


def test_a_text_is_no_pruned_program(model):
    with pytest.raises(sharp_compile.CannotPrune, match="no visual tokens are injected"):
        sharp_compile.export(model, input_ids=text_only(20))


def test_a_layer_that_leaves_none(model):
    with pytest.raises(sharp_compile.CannotPrune, match="leaves no later layer"):
        sharp_compile.export(model, layer=5, **inputs_of(NAME, 12))


def test_a_step_needs_a_program_of_this_process(model, tmp_path):
    torch.export.save(programs(NAME)[0], tmp_path / "prefill.pt2")
    with pytest.raises(ValueError, match=r"as sharp_compile.export returned it"):
        sharp_compile.export_decode(model, torch.export.load(tmp_path / "prefill.pt2"))


def test_a_row_of_too_much_text_ends_the_program(model):
    program = programs(NAME)[0].module()
    inputs = inputs_of(NAME, 12)
    image = inputs["input_ids"][1] == model.config.image_token_id
    # All visual tokens in the first row, none in the second one: its row is text, and more than is kept.
    ids = inputs["input_ids"].clone()
    ids[1, image] = 20
    mixed = inputs | {"input_ids": ids, "pixel_values": inputs["pixel_values"]}
    with pytest.raises(RuntimeError):
        program(**mixed)


@pytest.mark.slow
def test_other_arguments_are_fixed(model):
    inputs = inputs_of(NAME, 12)
    program = sharp_compile.export(model, retention=RETENTION, logits_to_keep=1, **inputs)
    one, all_ = (each.module()(**inputs)["logits"] for each in (program, programs(NAME)[0]))
    assert one.shape[1] == 1
    torch.testing.assert_close(one, all_[:, -1:], atol=1e-4, rtol=1e-4)

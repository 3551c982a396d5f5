"""The kinds of calls that transformers offers, one model compiled for each, compared with the hooked eager model.

Beams, eager attention, static caches, labels and hidden states are in `test_generate`, `test_caches`, `test_loss` and
`test_equivalence`. Contrastive search and DoLa load code from the network, in the stock model too.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

import sharp_compile
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, ARCHITECTURES, shared_model, text_only
from tests.support import TOLERANCE, assert_same_generation, assert_same_logits, forward, generate, second_turn

LAYERS = 4
CASE = {"selector": "fastv", "retention": 0.25, "layer": 1}
# Of one graph; of a graph that injects features and one that decodes; of images with text between them.
KINDS = ("llava_onevision", "qwen2_5_vl", "internvl")

pytestmark = pytest.mark.usefixtures("room_for_many_graphs")


def every_kind_and(values, quick):
    """The parameters of all pairs of a kind and a value, slow but for the pairs in `quick`."""
    marks = {pair: [] if pair in quick else [pytest.mark.slow] for pair in product(KINDS, values)}
    return [pytest.param(*pair, marks=marks[pair], id="-".join(map(str, pair))) for pair in marks]


def prepare(name, **options):
    """The eager model and a compiled copy of it."""
    model = shared_model(name, layers=LAYERS)
    fast = deepcopy(model)
    fast.compile(backend="sharp", options=CASE | {"inner": "eager"} | options)
    return model, fast


def assert_same(call, model, fast, inputs, tolerance=TOLERANCE, **case):
    """`call(model, inputs)` gives the tensors that the pruned model gives, and the same positions are kept."""
    actual = call(fast, inputs)
    with oracle.prune(model, **CASE | case) as run:
        expected = call(model, inputs)
    assert_kept(run)
    assert_close(actual, expected, **tolerance)
    return actual


def assert_kept(run):
    kept = [report.kept for report in sharp_compile.reports() if report.pruned and report.kept is not None]
    assert any(positions.equal(run.kept[0]) for positions in kept), sharp_compile.reports()


def answer(**options):
    """Generates, from the same random numbers; tokens, and the logits of each where they have one shape."""

    def call(model, inputs):
        torch.manual_seed(3)
        output = generate(model, inputs, **options)
        return [output.sequences, *output.logits]

    return call


def logits(**options):
    return lambda model, inputs: forward(model, inputs | options).logits


def in_inference_mode(model, inputs):
    with torch.inference_mode():
        return model(**inputs).logits.clone()


def gradients(model, inputs):
    """The logits and their gradients, but for the norm after the last layer, where the oracle's NaNs arrive."""
    answered = model(**inputs).logits[:, -1]
    norm = oracle.text_model(model).norm.weight
    parameters = [parameter for parameter in model.parameters() if parameter is not norm]
    return [answered.detach(), *torch.autograd.grad(answered.square().sum(), parameters, materialize_grads=True)]


CALLS = {
    "use_cache=False": answer(use_cache=False),
    "forward, use_cache=False": logits(use_cache=False),
    "logits_to_keep=1": logits(logits_to_keep=1),
    "logits_to_keep=3": logits(logits_to_keep=3),
    "a tuple": lambda model, inputs: forward(model, inputs | {"return_dict": False})[0],
    "inference_mode": in_inference_mode,
    "several samples": answer(do_sample=True, top_k=5, temperature=2.0, num_return_sequences=3),
    "samples of beams": answer(do_sample=True, top_k=5, num_beams=2),
}


QUICK = [
    ("llava_onevision", "use_cache=False"),
    ("internvl", "logits_to_keep=3"),
    ("internvl", "several samples"),
]


@pytest.mark.parametrize(("name", "kind"), every_kind_and(CALLS, QUICK))
def test_call(name, kind):
    model, fast = prepare(name)
    assert_same(CALLS[kind], model, fast, ARCHITECTURES[name].inputs(model))


@pytest.mark.parametrize("name", [n if n == KINDS[0] else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])
def test_gradients(name):
    """In double precision: they go into the hundreds, where single precision rounds by more than the tolerance."""
    model, fast = prepare(name)
    inputs = ARCHITECTURES[name].inputs(model)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    assert_same(gradients, deepcopy(model).double(), fast.double(), inputs)


@pytest.mark.parametrize(("name", "rows"), every_kind_and([3, 4], [("qwen2_5_vl", 4)]))
def test_many_padded_rows(name, rows):
    """Of different numbers of visual tokens, where the model takes such rows."""
    architecture, (model, fast) = ARCHITECTURES[name], prepare(name)
    frames = [8, 4, 6, 8][:rows] if architecture.ragged else 8
    inputs = architecture.inputs(model, frames, pad=[2, 0, 5, 1][:rows])
    actual = generate(fast, inputs)
    with oracle.prune(model, **CASE) as run:
        expected = generate(model, inputs)
    assert_kept(run)
    assert_same_generation(actual, expected, inputs)


@pytest.mark.parametrize(("name", "rows"), every_kind_and([1, 2], []))
def test_one_conversation_after_another(name, rows):
    """A video, text alone, another video, and two turns of text on its cache."""
    model, fast = prepare(name)
    architecture = ARCHITECTURES[name]

    def talk(model):
        first = architecture.inputs(model, batch=rows)
        text = {"input_ids": text_only(20, rows), "attention_mask": torch.ones(rows, 20, dtype=torch.long)}
        inputs = architecture.inputs(model, frames=6, text=15, pad=[3, 0][:rows], seed=5)
        yield first, generate(model, first)
        yield text, generate(model, text)
        for seed in (1, 2, 3):
            output = generate(model, inputs)
            yield inputs, deepcopy(output)
            inputs = second_turn(inputs, output, text_only(4, rows, seed))

    said = list(talk(fast))
    with oracle.prune(model, **CASE) as run:
        expected = list(talk(model))
    assert_kept(run)
    for (inputs, ours), (_, theirs) in zip(said, expected, strict=True):
        assert_same_generation(ours, theirs, inputs)


@pytest.mark.parametrize(("name", "how"), every_kind_and(["assistant", "lookup"], []))
def test_assisted_decoding(name, how):
    """Gives the tokens of decoding without it, too, with a selector that does not see the candidates.

    The first candidates are decoded in the prefill, as text after the video.
    """
    model, fast = prepare(name, selector="uniform")
    inputs = ARCHITECTURES[name].inputs(model, text=24)
    with oracle.prune(model, **CASE | {"selector": "uniform"}):
        plain = generate(model, inputs, max_new_tokens=12).sequences
        # What will be said is in the prompt, for lookups to find.
        inputs["input_ids"][0, :8] = plain[0, -8:]
        plain = generate(model, inputs, max_new_tokens=12).sequences
    lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    helped = lookup if how == "lookup" else {"assistant_model": deepcopy(model)}
    actual = assert_same(answer(max_new_tokens=12, **helped), model, fast, inputs, selector="uniform")
    assert actual[0].tolist() == plain.tolist()


def one_behind_another(first, second):
    """The inputs of prompts [B, S] that are both halves of one."""
    shape = first["input_ids"].shape
    return {name: torch.cat([each, second[name]], int(each.shape == shape)) for name, each in first.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "qwen2_5_vl" else [pytest.mark.slow]) for name in KINDS]
)
def test_several_videos_in_one_prompt(name):
    architecture, (model, fast) = ARCHITECTURES[name], prepare(name)
    frames = 4 if architecture.ragged else 8
    inputs = one_behind_another(architecture.inputs(model), architecture.inputs(model, frames, seed=3))
    assert_same(answer(), model, fast, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["image first", "video first"])
def test_an_image_and_a_video_in_one_prompt(order):
    """Features are injected twice."""
    name = "qwen2_5_vl"
    architecture, (model, fast) = ARCHITECTURES[name], prepare(name)
    video, image = architecture.inputs(model), architecture.inputs(model, frames=2, seed=3)
    pixels = {"pixel_values": image.pop("pixel_values_videos"), "image_grid_thw": image.pop("video_grid_thw")}
    is_image = image["input_ids"] == model.config.video_token_id
    image["input_ids"].masked_fill_(is_image, model.config.image_token_id)
    image["mm_token_type_ids"].masked_fill_(is_image, 1)
    halves = [image, {key: video[key] for key in image}]
    inputs = one_behind_another(*(halves if order == "image first" else halves[::-1]))
    assert_same(answer(), model, fast, inputs | pixels | {key: video[key] for key in video.keys() - image.keys()})


# Both models round alike but where the order of sums differs, by a unit of the last place or two; the unit of
# logits up to 16 is 1/16 in bfloat16 and 1/128 in float16.
HALVES = {
    "bfloat16": (torch.bfloat16, nullcontext(), {"atol": 0.25, "rtol": 0}),
    "float16": (torch.float16, nullcontext(), {"atol": 0.03, "rtol": 0}),
    "autocast": (torch.float32, torch.autocast("cpu", torch.bfloat16), {"atol": 0.25, "rtol": 0}),
}


@pytest.mark.parametrize(("name", "kind"), every_kind_and(HALVES, [("internvl", "bfloat16")]))
def test_half_precision(name, kind):
    dtype, context, tolerance = HALVES[kind]
    model, fast = prepare(name, selector="uniform")  # which keeps the same, however scores are rounded
    model = deepcopy(model).to(dtype)
    inputs = ARCHITECTURES[name].inputs(model, batch=2, pad=[0, 3])
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    with context:
        assert_same(logits(logits_to_keep=4), model, fast.to(dtype), inputs, tolerance, selector="uniform")


@pytest.mark.parametrize("name", ["internvl", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_fullgraph(name):
    """The models that Dynamo captures in one piece stay in one piece."""
    model, fast = prepare(name)
    inputs = ALL_ARCHITECTURES[name].inputs(model)
    fast.compile(backend="sharp", fullgraph=True, options=CASE | {"inner": "eager"})
    assert_same(logits(), model, fast, inputs)
    assert len(sharp_compile.reports()) == 1


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "llava_onevision" else [pytest.mark.slow]) for n in ARCHITECTURES]
)
def test_ten_lengths_compile_the_decoder_twice_at_most(name):
    decoders = []

    def inner(module, inputs):
        attentions = module.graph.find_nodes(op="call_function", target=scaled_dot_product_attention)
        if any(node.args[0].meta["example_value"].shape[1] == 4 for node in attentions):  # the towers have two heads
            decoders.append(module)
        return module.forward

    model, fast = prepare(name, inner=inner)
    for frames in (8, 12, 4, 6, 10, 14, 16, 18, 20, 24):
        inputs = ARCHITECTURES[name].inputs(model, frames)
        actual = forward(fast, inputs).logits
        with oracle.prune(model, **CASE) as run:
            assert_same_logits(actual, forward(model, inputs).logits, inputs)
        assert_kept(run)
    assert len(decoders) <= 2

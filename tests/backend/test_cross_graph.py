"""Visual features injected in one graph, the decoder in the next."""

import warnings

import pytest
import torch
from torch.testing import assert_close

import sharp_compile
from sharp_compile import CannotPrune
from sharp_compile.backend.reporting import breaks_so_far, last_break
from sharp_compile.report import latest_kept
from tests.toy import Toy, toy_inputs

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


class Broken(Toy):
    """Breaks the graph between the injection and the decoder, as `get_rope_index` does in transformers."""

    between = staticmethod(lambda embeddings: embeddings)

    def forward(self, ids, features=None, attention_mask=None, cut=None):
        hidden = self.embed(ids)
        if features is not None:
            hidden = hidden.masked_scatter((ids == 49).unsqueeze(-1).expand_as(hidden), features)
        torch._dynamo.graph_break()
        hidden = self.between(hidden)
        return self.through_layers(hidden, attention_mask, cut)[0]


class Twice(Broken):
    """Injects images in one graph and a video in the next, which may have the decoder."""

    def __init__(self, breaks_again):
        super().__init__()
        self.breaks_again = breaks_again

    def forward(self, ids, features, images=None, cut=None):
        hidden = self.embed(ids)
        if images is not None:
            hidden = hidden.masked_scatter((ids == 48).unsqueeze(-1).expand_as(hidden), images)
        torch._dynamo.graph_break()
        hidden = hidden.masked_scatter((ids == 49).unsqueeze(-1).expand_as(hidden), features)
        if self.breaks_again:
            torch._dynamo.graph_break()
        return self.through_layers(hidden, cut=cut)[0]


def compiled(model, dynamic=None, **options):
    options = {"inner": "eager", "on_skip": "raise", "retention": 0.25} | options
    return torch.compile(model, backend="sharp", options=options, dynamic=dynamic)


def decoder_report():
    (report,) = [report for report in sharp_compile.reports() if report.pruned]
    return report


@pytest.mark.parametrize(
    "selector, inner",
    [
        ("sharp", "eager"),
        ("diversity", "eager"),
        pytest.param("sharp", "inductor", marks=pytest.mark.slow),
        pytest.param("diversity", "inductor", marks=pytest.mark.slow),
    ],
)
def test_the_decoder_is_pruned(selector, inner):
    model, inputs = Broken(), toy_inputs(rows=2, pad=[0, 3])
    with torch.no_grad():
        actual = compiled(model, inner=inner, selector=selector)(**inputs)
        report = decoder_report()
        expected = model(**inputs, cut={1: report.kept})
    real = inputs["attention_mask"].gather(1, report.kept).bool()
    assert_close(actual[real], expected[real], **CLOSE)
    assert (report.sequence_length, report.pruned_length) == (29, 14)
    assert (report.visual_tokens, report.kept_tokens) == (20, 5)
    assert [report.pruned for report in sharp_compile.reports()] == [False, True]


@pytest.mark.parametrize("breaks_again", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("order", [[True, False], [False, True]])
def test_images_and_videos_are_injected_by_two_graphs(breaks_again, order):
    """All of them are visual tokens, whichever call comes first: with images, or without."""
    model = Twice(breaks_again)
    fast = compiled(model, selector="uniform")
    for has_images in order:
        inputs = toy_inputs()
        inputs["ids"].masked_fill_(inputs["ids"] == 48, 47)
        if has_images:
            images = torch.full((1, 8), 48)
            inputs["ids"] = torch.cat([inputs["ids"][:, :1], images, inputs["ids"][:, 1:]], 1)
            inputs["images"] = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
        actual, kept = fast(**inputs), latest_kept()
        is_visual = (inputs["ids"] >= 48).gather(1, kept)
        assert is_visual.sum() == (7 if has_images else 5)
        assert_close(actual, model(**inputs, cut={1: kept}), **CLOSE)
        if has_images:
            lengths = [(r.sequence_length, r.visual_tokens, r.kept_tokens) for r in sharp_compile.reports() if r.pruned]
            assert (34, 28, 7) in lengths


@pytest.mark.parametrize("dynamic", [None, True])
def test_many_lengths_compile_the_decoder_twice_at_most(dynamic):
    decoders = []

    def inner(module, inputs):
        if any(node.target is torch._C._nn.scaled_dot_product_attention for node in module.graph.nodes):
            decoders.append(module)
        return module.forward

    model = Broken()
    fast = compiled(model, dynamic=dynamic, inner=inner)
    for visual in (20, 30, 60, 25, 90, 41, 100, 33, *range(43, 79, 3)):
        inputs = toy_inputs(visual)
        actual = fast(**inputs)
        kept = [r.kept for r in sharp_compile.reports() if r.kept is not None and r.kept.shape[1] == actual.shape[1]]
        assert_close(actual, model(**inputs, cut={1: kept[-1]}), **CLOSE)
    assert 1 <= len(decoders) <= 2


def test_other_numbers_of_visual_tokens_at_one_length():
    model = Broken()
    fast = compiled(model)
    for visual, text in ((20, 6), (10, 16), (25, 1)):
        assert fast(**toy_inputs(visual, text, before=0)).shape[1] == text + -(-visual // 4)


def test_text_before_and_after_a_video():
    """One compiled decoder graph serves prompts with and without visual tokens."""
    model, inputs = Broken(), toy_inputs()
    text = {"ids": torch.randint(1, 49, (1, 26))}
    fast = compiled(model)
    for _ in range(2):
        assert_close(fast(**text), model(**text), **CLOSE)
        assert fast(**inputs).shape[1] == 11
    assert decoder_report().reason.startswith("an earlier graph injected visual features")


def test_stages():
    model, inputs = Broken(), toy_inputs()
    actual = compiled(model, retention=0.25)(**inputs)
    assert actual.shape[1] == 11
    torch._dynamo.reset()
    sharp_compile.reset()
    options = {"inner": "eager", "stages": [(0, 0.5), (1, 0.25)], "selector": "uniform"}
    assert torch.compile(model, backend="sharp", options=options)(**inputs).shape[1] == 11
    assert decoder_report().kept.shape == (1, 11)


def test_a_changed_copy_of_the_embeddings_is_not_taken_for_them():
    model, inputs = Broken(), toy_inputs()
    model.between = torch._dynamo.disable(lambda embeddings: embeddings.flip(1))
    expected = model(**inputs)
    fast = compiled(model, on_skip="warn")
    with pytest.warns(UserWarning, match="no compiled graph with a decoder read them"):
        actual = fast(**inputs)
    assert_close(actual, expected, **CLOSE)


def test_embeddings_that_no_decoder_reads_tell_where_dynamo_broke():
    model, inputs = Broken(), toy_inputs()
    model.between = torch._dynamo.disable(lambda embeddings: embeddings.flip(1))
    with pytest.warns(UserWarning, match=r'last in forward \(File ".*test_cross_graph.py", line \d+\): \w+') as told:
        fast = compiled(model, on_skip="warn")
        fast(**inputs)
        torch.compile(lambda x: torch._dynamo.graph_break() or x, backend="eager")(torch.ones(1))
        fast(**inputs)
    reasons = [str(each.message) for each in told if "no compiled graph with a decoder" in str(each.message)]
    assert len(set(reasons)) == 1
    assert last_break(since=breaks_so_far()) == ""


def test_embeddings_that_are_written_into_are_not_linked():
    model, inputs = Broken(), toy_inputs()
    model.between = torch._dynamo.disable(lambda embeddings: embeddings.mul_(1.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compiled(model, on_skip="warn")(**inputs).shape[1] == 26


def test_a_linked_decoder_that_can_not_be_pruned_says_so():
    model, inputs = Broken(layers=2), toy_inputs()
    with pytest.raises(CannotPrune, match="layer=1 leaves no later layer"):
        compiled(model)(**inputs)
    torch._dynamo.reset()
    fast = compiled(model, on_skip="warn")
    with pytest.warns(UserWarning, match="layer=1 leaves no later layer"):
        assert_close(fast(**inputs), model(**inputs), **CLOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_close(fast(**inputs), model(**inputs), **CLOSE)


def test_gradients():
    model, inputs = Broken(), toy_inputs()
    compiled(model, inner="aot_eager")(**inputs).square().sum().backward()
    actual = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(**inputs, cut={1: decoder_report().kept}).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(actual[name], parameter.grad, atol=1e-4, rtol=1e-3)


def test_inference_mode():
    model, inputs = Broken(), toy_inputs()
    with torch.inference_mode():
        assert compiled(model)(**inputs).shape[1] == 11

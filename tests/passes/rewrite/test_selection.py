"""The selection of a pruned graph: what it keeps, and what it refuses of a rule."""

import pytest
import torch
from sharp_compile.passes.analysis.injection import find_injections
from sharp_compile.passes.errors import SelectorError
from sharp_compile.passes.pipeline import prune, with_injections

from sharp_compile.options import Config
from tests.graphs import Recorder
from tests.toy import Toy, toy_inputs

VISUAL = torch.arange(2, 22)


def selected(inputs, **options):
    """The auxiliary outputs of a pruned graph, by name, without any backend."""
    recorder = Recorder()
    torch.compile(Toy(), backend=recorder, fullgraph=True)(**inputs)
    module = with_injections(recorder.modules[0])
    (injection,) = find_injections(module.graph)
    pruned = prune(module, injection, Config.parse(options))
    assert pruned is not None
    outputs = pruned.module(*recorder.inputs[0])
    return pruned, dict(zip(pruned.aux_outputs, outputs[-len(pruned.aux_outputs) :], strict=True))


def test_the_highest_scores_are_kept_with_all_text():
    def by_position(ctx):
        return -torch.arange(ctx.hidden.shape[1]).expand(ctx.is_visual.shape).float()

    pruned, aux = selected(toy_inputs(), selector=by_position, retention=0.25)
    assert pruned.aux_outputs == ("kept", "scores", "frame", "text")
    assert aux["kept"].tolist() == [[0, 1, *range(2, 7), *range(22, 26)]]
    assert aux["text"].tolist() == [6]
    assert aux["scores"].isnan().logical_not().nonzero()[:, 1].equal(VISUAL)
    assert aux["scores"][0, 2:22].equal(-VISUAL.float())


def test_padding_goes_first():
    _, aux = selected(toy_inputs(rows=2, pad=[0, 3]), selector="uniform", retention=0.25)
    text = [22, 23, 24, 25, 26, 27, 28]
    assert aux["kept"].shape == (2, 14) and aux["kept"][1].min() >= 3
    assert set(text[3:]) <= set(aux["kept"][1].tolist())
    assert aux["text"].tolist() == [9, 6]


def test_stages_keep_positions_of_the_whole_sequence():
    _, aux = selected(toy_inputs(), retention=1.0, selector="uniform")
    assert aux["kept"].tolist() == [[*range(26)]]
    _, aux = selected(toy_inputs(), stages=[(0, 0.5), (2, 0.25)], selector="uniform")
    first, last = aux["kept_1"][0].tolist(), aux["kept"][0].tolist()
    assert (len(first), len(last)) == (16, 11) and set(last) < set(first)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda ctx: ctx.hidden, r"a tensor \[B, S\] = \[1, 26\], it returned a tensor \[1, 26, 16\] of float32"),
        (lambda ctx: None, "it returned NoneType"),
        (lambda ctx: (ctx.hidden[..., 0], ctx.is_visual), "of float32 and a tensor .* of bool"),
    ],
    ids=["another shape", "nothing", "representatives of another type"],
)
def test_what_a_rule_must_not_return(rule, said):
    with pytest.raises(SelectorError, match=said):
        selected(toy_inputs(), selector=rule)

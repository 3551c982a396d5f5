"""The parts of ShaRP against their equations, written out as loops, and on inputs made for each."""

import dataclasses
import itertools

import pytest
import torch
from torch.testing import assert_close

from sharp_compile.calibration import Calibration
from sharp_compile.selectors.sharp.dedup import demote_copies
from sharp_compile.selectors.sharp.segments import segments
from sharp_compile.sharp_options import Dedup, Segment
from tests.selectors.test_selectors import context, kept_positions, rule

OFF = {"selector": "sharp", "segment": None, "debias": None, "dedup": None}
ROWS, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 14, 4, 2, 4
VISUAL = slice(3, 11)
FRAMES = torch.tensor([[-1] * 3 + [0, 0, 1, 1, 2, 2, 3, 3] + [-1] * 3] * ROWS)


def turned(keys):
    """A rotation by an angle that grows with the position, like a rotary embedding."""
    angle = torch.arange(LENGTH)[:, None] * torch.tensor([1.0, 0.1])
    first, second = keys.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


@pytest.fixture
def ctx():
    generator = torch.Generator().manual_seed(3)
    unrotated = torch.randn(ROWS, KV_HEADS, LENGTH, WIDTH, generator=generator)
    is_visual = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    is_visual[:, VISUAL] = True
    padding = torch.zeros_like(is_visual)
    padding[1, 0] = True
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & ~padding[:, None, None, :]
    return context(
        query=torch.randn(ROWS, HEADS, LENGTH, WIDTH, generator=generator),
        grouped_key=turned(unrotated),
        grouped_key_unrotated=unrotated,
        hidden=torch.randn(ROWS, LENGTH, 8, generator=generator),
        is_visual=is_visual,
        is_padding=padding,
        frame=FRAMES,
        mask=mask,
        rotate=turned,
        kept=10,
    )


def softmax_of(logits):
    """Softmax of a dictionary's values."""
    highest = max(logits.values())
    weights = {place: torch.exp(value - highest) for place, value in logits.items()}
    return {place: weight / sum(weights.values()) for place, weight in weights.items()}


def content_logit(ctx, b, h, t, k):
    return ctx.query[b, h, t] @ ctx.grouped_key[b, h // 2, k] / WIDTH**0.5


def position_logit(ctx, b, h, t, k):
    """The same for a visual key without content: the mean of all, turned to its position."""
    if not ctx.is_visual[b, k]:
        return content_logit(ctx, b, h, t, k)
    mean = ctx.grouped_key_unrotated[b, h // 2, ctx.is_visual[b]].mean(0)
    return ctx.query[b, h, t] @ turned(mean.expand(LENGTH, WIDTH))[k] / WIDTH**0.5


def text_attention(ctx, logit, only_visual=False, of_last=0.4):
    """``[B, S]``: the share that a token has of the attention of the text after the video, by the mean of logits."""
    scores = torch.zeros(ROWS, LENGTH)
    *others, last = range(VISUAL.stop, LENGTH)
    for b, h in itertools.product(range(ROWS), range(HEADS)):
        logits = {}
        for k in range(LENGTH):
            if not ctx.is_padding[b, k] and (ctx.is_visual[b, k] or not only_visual):
                of_others = sum(logit(ctx, b, h, t, k) for t in others) / len(others)
                logits[k] = of_last * logit(ctx, b, h, last, k) + (1 - of_last) * of_others
        for k, share in softmax_of(logits).items():
            scores[b, k] += share / HEADS
    return scores


def by_hand(ctx, form=None, frames_per_segment=None, of_last=0.4):
    """Scores ``[B, S]`` of the visual tokens: the equations of docs/method.md, one probability at a time."""
    if form == "logit":
        scores = text_attention(ctx, lambda *at: content_logit(*at) - position_logit(*at), only_visual=True)
    else:
        scores = text_attention(ctx, content_logit, of_last=of_last)
    if form == "subtract":
        scores = scores - text_attention(ctx, position_logit)
    if form == "ratio":
        scores = scores / (text_attention(ctx, position_logit) + 1e-8)
    return scores if frames_per_segment is None else scores + second_step(ctx, scores, frames_per_segment)


def second_step(ctx, scores, frames_per_segment):
    """What visual tokens give each other inside segments."""
    given = torch.zeros(ROWS, LENGTH)
    for b in range(ROWS):
        visual = [v for v in range(LENGTH) if ctx.is_visual[b, v]]
        for u, h in itertools.product(visual, range(HEADS)):
            same = [k for k in visual if FRAMES[b, k] // frames_per_segment == FRAMES[b, u] // frames_per_segment]
            text = [k for k in range(LENGTH) if k not in visual and not ctx.is_padding[b, k]]
            seen = [k for k in (*text, *same) if k <= u]
            share = softmax_of({k: content_logit(ctx, b, h, u, k) for k in seen})
            for v in set(seen) & set(visual):
                given[b, v] += max(scores[b, u], 0) * share[v] / HEADS / 2
    return given


@pytest.mark.parametrize("form", [None, "logit", "subtract", "ratio"])
@pytest.mark.parametrize("frames", [None, 1, 3])
def test_scores_are_the_equations(ctx, form, frames):
    options = {"debias": None if form is None else {"form": form}}
    options["segment"] = None if frames is None else {"frames": frames}
    scores = rule(**OFF | options)(ctx)
    assert_close(scores[ctx.is_visual], by_hand(ctx, form, frames)[ctx.is_visual], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form, expected", [("logit", 1 / 8), ("subtract", 0.0), ("ratio", 1.0)])
def test_a_bias_of_position_is_removed(ctx, form, expected):
    """All visual keys are the same before rotation: what differs between them is position."""
    ctx.grouped_key_unrotated[:, :, VISUAL] = ctx.grouped_key_unrotated[:, :, 3:4]
    ctx.grouped_key[:] = turned(ctx.grouped_key_unrotated)
    biased = rule(**OFF)(ctx)[ctx.is_visual]
    assert biased.max() > 1.2 * biased.min()
    scores = rule(**OFF | {"debias": {"form": form}})(ctx)[ctx.is_visual]
    assert_close(scores, torch.full_like(scores, expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["subtract", "ratio"])
def test_a_measured_bias_is_removed(ctx, form):
    plain = rule(**OFF)(ctx)
    profile = Calibration(1, {5: torch.ones(5), 8: torch.linspace(0.1, 0.8, 8)})
    scores = rule(**OFF | {"debias": {"profile": profile, "form": form}})(ctx)[:, VISUAL]
    bias = torch.linspace(0.1, 0.8, 8)
    expected = plain[:, VISUAL] - bias if form == "subtract" else plain[:, VISUAL] / bias
    assert_close(scores, expected, rtol=1e-4, atol=1e-6)


def test_a_measured_bias_is_stretched_to_another_length(ctx):
    profile = Calibration(1, {4: torch.tensor([0.0, 1.0, 4.0, 1.0])})
    taken_off = (rule(**OFF)(ctx) - rule(**OFF | {"debias": profile})(ctx))[:, VISUAL]
    places = torch.arange(8) * 3 / 7
    expected = torch.where(places < 1, places, torch.where(places < 2, 1 + 3 * (places - 1), 4 - 3 * (places - 2)))
    assert_close(taken_off, expected.expand(ROWS, 8), rtol=1e-4, atol=1e-5)


def kept_visual(ctx, **options):
    scores = rule(**OFF | options)(ctx)
    positions = kept_positions(ctx, scores)
    return [[p for p in row.tolist() if VISUAL.start <= p < VISUAL.stop] for row in positions]


@pytest.mark.parametrize("on", ["keys", "hidden"])
def test_exact_copies_are_not_both_kept_while_others_are_left(ctx, on):
    first, second = 4, 9
    order = rule(**OFF)(ctx)[:, VISUAL].argsort(dim=1, descending=True) + VISUAL.start
    first, second = order[0, 0].item(), order[0, 1].item()
    ctx.grouped_key_unrotated[0, :, second] = ctx.grouped_key_unrotated[0, :, first]
    ctx.hidden[0, second] = ctx.hidden[0, first]
    assert {first, second} <= set(kept_visual(ctx)[0])
    threshold = {"on": on, "threshold": 0.999}
    without = kept_visual(ctx, dedup=threshold)
    assert first in without[0] and second not in without[0]
    assert [len(row) for row in without] == [len(row) for row in kept_visual(ctx)]


@pytest.mark.parametrize("layer, of_last", [(0, 0.4), (1, 0.64), (3, 0.8704)])
def test_the_last_position_counts_more_the_deeper_it_is(ctx, layer, of_last):
    ctx = dataclasses.replace(ctx, layer=layer)
    expected = by_hand(ctx, of_last=of_last)
    assert_close(rule(**OFF)(ctx)[ctx.is_visual], expected[ctx.is_visual], rtol=1e-4, atol=1e-5)


def test_only_copies_keep_the_right_number_by_score(ctx):
    ctx.grouped_key_unrotated[:, :, VISUAL] = 1.0
    ctx.hidden[:, VISUAL] = 1.0
    assert kept_visual(ctx, dedup="keys") == kept_visual(ctx, dedup="hidden") == kept_visual(ctx)


@pytest.mark.parametrize("on", ["keys", "hidden"])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3, 0.9])
def test_copies_of_the_greedy_walk_count_a_tenth(ctx, threshold, on):
    scores = rule(**OFF)(ctx)
    with_dedup = rule(**OFF | {"dedup": {"threshold": threshold, "on": on}})(ctx)
    vectors = ctx.hidden if on == "hidden" else ctx.grouped_key_unrotated.transpose(1, 2).flatten(2)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    for b in range(ROWS):
        order = sorted(range(VISUAL.start, VISUAL.stop), key=lambda v: (-scores[b, v].item(), v))
        passed = []
        for v in order:
            is_copy = len(passed) < ctx.budget[b] and any(unit[b, v] @ unit[b, u] > threshold for u in passed)
            assert_close(with_dedup[b, v], scores[b, v] / 10 if is_copy else scores[b, v])
            passed += [] if is_copy else [v]


def test_a_copy_that_scores_far_more_than_others_stays(ctx):
    scores = torch.zeros(ROWS, LENGTH)
    scores[0, VISUAL] = torch.tensor([0.01, 0.02, 1.0, 0.03, 0.9, 0.04, 0.05, 0.2])
    ctx.hidden[0, [7, 10]] = ctx.hidden[0, [5, 8]]  # copies: 0.9 of 1.0, and 0.04 of 0.2
    expected = scores.clone()
    expected[0, 7], expected[0, 8] = 0.09, 0.004
    assert_close(demote_copies(ctx, scores, Dedup(0.999))[0], expected[0])


def test_tokens_of_other_segments_give_nothing(ctx):
    """Frame 0 in a segment of its own gets nothing from the frames after it, which it gets something from else."""
    given = {}
    for frames in (1, 4):
        options = OFF | {"segment": {"frames": frames}}
        given[frames] = rule(**options)(ctx) - rule(**OFF)(ctx)
    inside = second_step(ctx, rule(**OFF)(ctx), 1)
    assert_close(given[1][ctx.is_visual], inside[ctx.is_visual], rtol=1e-4, atol=1e-5)
    assert (given[4][:, 3:5] > given[1][:, 3:5]).all()


def test_segments_of_so_many_frames():
    frame = torch.tensor([[-1, 0, 0, 1, -1, 2, 3, 4, 4, -1]])
    assert segments(frame, torch.zeros(1, 10, 1), Segment(frames=2)).tolist() == [[-1, 0, 0, 0, -1, 1, 1, 2, 2, -1]]


def test_segments_are_cut_where_neighbouring_frames_differ_most():
    frame = torch.tensor([[-1, 0, 0, 1, -1, 2, 2, 3, 4, -1]])
    angle = torch.tensor([9.0, 0.0, 0.2, 0.1, 9.0, 1.0, 1.2, 1.1, 1.6, 9.0])
    vectors = torch.stack([angle.cos(), angle.sin()], dim=-1)[None]
    assert segments(frame, vectors, Segment(count=2)).tolist() == [[-1, 0, 0, 0, -1, 1, 1, 1, 1, -1]]
    assert segments(frame, vectors, Segment(count=3)).tolist() == [[-1, 0, 0, 0, -1, 1, 1, 1, 2, -1]]
    assert segments(frame, vectors, Segment(count=99)).tolist() == [[-1, 0, 0, 1, -1, 2, 2, 3, 4, -1]]

"""FrameFusion on videos made for it."""

import pytest
import torch
from torch.testing import assert_close

from sharp_compile.options import Config
from sharp_compile.selector_registry import find_rule
from tests.selectors.test_selectors import context, kept_positions

BEFORE, PLACES = 2, 4


def video(frames, kept=10, **changes):
    """A state whose visual tokens have the states ``frames`` [F, P, 8], of which ``kept`` visual ones are to stay."""
    visual = slice(BEFORE, BEFORE + frames.shape[0] * frames.shape[1])
    length = visual.stop + 3
    hidden = torch.randn(1, length, 8, generator=torch.Generator().manual_seed(1))
    hidden[:, visual] = frames.flatten(0, 1)
    frame = torch.full((1, length), -1)
    frame[:, visual] = torch.arange(len(frames)).repeat_interleave(frames.shape[1])
    return context(length, visual, kept + BEFORE + 3, **{"hidden": hidden, "frame": frame} | changes)


def framefusion(ctx):
    made = find_rule(Config.parse({"selector": "framefusion"}))
    assert made.merges
    return made.score(ctx)


def fastv(ctx):
    return find_rule(Config.parse({"selector": "fastv"})).score(ctx)


def directions(count):
    """Vectors [count, 8] at right angles."""
    return torch.eye(8)[:count]


def kept(ctx, scores):
    positions = kept_positions(ctx, scores)
    assert ctx.is_visual.gather(1, positions).sum(1).equal(ctx.budget)
    return positions


def test_a_still_video_merges_to_its_first_frame():
    ctx = video(directions(PLACES).expand(6, -1, -1), kept=PLACES)
    scores, into = framefusion(ctx)
    assert (into[ctx.is_visual] - BEFORE).tolist() == list(range(PLACES)) * 6
    assert into[~ctx.is_visual].tolist() == (~ctx.is_visual[0]).nonzero().flatten().tolist()
    assert (kept(ctx, scores)[0, BEFORE : BEFORE + PLACES] - BEFORE).tolist() == list(range(PLACES))


def test_a_moving_video_does_not_merge():
    frames = torch.stack([directions(PLACES), directions(8)[PLACES:]] * 3)
    ctx = video(frames)
    scores, into = framefusion(ctx)
    assert into.equal(torch.arange(into.shape[1])[None])
    assert_close(scores, fastv(ctx))


def test_a_place_that_changes_begins_a_run():
    frames = directions(PLACES).repeat(5, 1, 1)
    frames[2:, 1] = directions(8)[5]  # place 1 changes with frame 2
    into = framefusion(video(frames))[1][0, BEFORE : BEFORE + 5 * PLACES].view(5, PLACES) - BEFORE
    assert into[:, [0, 2, 3]].eq(torch.tensor([0, 2, 3])).all()
    assert into[:, 1].tolist() == [1, 1, 9, 9, 9]


def test_a_chain_of_small_changes_is_one_run():
    """Each is like the one before, the last is not like the first."""
    angle = torch.linspace(0, 3, 6)
    frames = (angle.cos()[:, None] * directions(2)[0] + angle.sin()[:, None] * directions(2)[1])[:, None]
    assert framefusion(video(frames))[1][0, BEFORE : BEFORE + 6].eq(BEFORE).all()


@pytest.mark.parametrize(("cosine", "merges"), [(0.59, False), (0.61, True)])
def test_the_threshold(cosine, merges):
    first, second = directions(2)
    frames = torch.stack([first, cosine * first + (1 - cosine**2) ** 0.5 * second])[:, None]
    assert framefusion(video(frames, kept=1))[1][0, BEFORE + 1] == (BEFORE if merges else BEFORE + 1)


@pytest.mark.parametrize("count", range(1, 13))
def test_heads_come_first_and_the_budget_is_met(count):
    frames = directions(PLACES).repeat(3, 1, 1)
    frames[2, 0] = directions(8)[6]
    ctx = video(frames, kept=count)
    scores, into = framefusion(ctx)
    heads = into[0] == torch.arange(into.shape[1])
    chosen = kept(ctx, scores)[0]
    of_chosen = heads[chosen] & ctx.is_visual[0, chosen]
    assert of_chosen.sum() == min(count, PLACES + 1)
    attention = fastv(ctx)[0].where(heads & ctx.is_visual[0], -1)
    assert set(attention.topk(min(count, PLACES + 1)).indices.tolist()) <= set(chosen.tolist())


def test_the_least_alike_of_what_repeats_is_kept_first():
    first, second = directions(2)
    turned = 0.9 * first + 0.19**0.5 * second
    scores, _ = framefusion(video(torch.stack([first, turned, turned])[:, None], kept=2))
    assert scores[0, BEFORE] > scores[0, BEFORE + 1] > scores[0, BEFORE + 2]


def test_frames_of_unequal_size():
    """A place that the frame before lacks has no predecessor, whatever the one before that had."""
    sizes = [3, 2, 4]
    rows = torch.cat([directions(size) for size in sizes])
    frame = torch.full((1, 14), -1)
    frame[:, 2:11] = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    hidden = torch.zeros(1, 14, 8)
    hidden[:, 2:11] = rows
    into = framefusion(context(14, slice(2, 11), kept=9, hidden=hidden, frame=frame))[1]
    assert into[0].tolist() == [0, 1, 2, 3, 4, 2, 3, 2, 3, 9, 10, 11, 12, 13]


def test_text_between_frames_and_padding_in_a_row():
    length = 12
    is_visual = torch.zeros(2, length, dtype=torch.bool)
    is_visual[0, [1, 2, 4, 5]] = True  # t vv t vv t...
    is_visual[1, [5, 6, 7, 8]] = True  # ppppt vvvv t..
    is_padding = torch.zeros_like(is_visual)
    is_padding[1, :4] = True
    frame = torch.full((2, length), -1)
    frame[0, [1, 2, 4, 5]] = torch.tensor([0, 0, 1, 1])
    frame[1, 5:9] = torch.tensor([0, 0, 1, 1])
    hidden = torch.ones(2, length, 8)
    query = key = torch.randn(2, 2, length, 4)
    state = {"query": query, "grouped_key": key, "grouped_key_unrotated": key}
    ctx = context(length, hidden=hidden, frame=frame, is_visual=is_visual, is_padding=is_padding, **state)
    into = framefusion(ctx)[1]
    assert into[0].tolist() == [0, 1, 2, 3, 1, 2, *range(6, length)]
    assert into[1].tolist() == [*range(7), 5, 6, *range(9, length)]


def test_one_frame_is_fastv():
    ctx = context(hidden=torch.ones(1, 12, 8))
    scores, into = framefusion(ctx)
    assert_close(scores, fastv(ctx))
    assert into.equal(torch.arange(12)[None])

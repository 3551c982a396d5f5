"""The rule "What is kept", against its words in Python."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sharp_compile.kernels.keep import keep_counts, keep_positions, leading

TEXT, VISUAL, PADDING = "tvp"
NAN, INF = math.nan, math.inf
SCORES = st.sampled_from([NAN, -INF, INF, -1.0, 0.0, 1.0, 2.0])
SHARES = st.fractions(min_value=Fraction(1, 20), max_value=1, max_denominator=20)


def given_up(kinds, scores, share, drop):
    """The positions that one row of kinds gives up, in the order of the contract; `share` of its visual tokens stay."""
    real = [at for at, kind in enumerate(kinds) if kind != PADDING]
    first = real[0] if real else len(kinds)
    padding = [at for at, kind in enumerate(kinds) if kind == PADDING]
    visual = [at for at, kind in enumerate(kinds) if kind == VISUAL]
    visual.sort(key=lambda at: (-INF if math.isnan(scores[at]) else scores[at], -at))
    before_padding = len(visual) - math.ceil(share * len(visual))
    order = [
        *(at for at in reversed(padding) if at < first),
        *visual[:before_padding],
        *(at for at in reversed(padding) if at > first),
        *visual[before_padding:],
    ]
    return order[:drop]


def kinds_of(rows):
    """What is visual and what is padding, ``[B, S]`` bool each."""
    return (torch.tensor([[kind == each for kind, _ in row] for row in rows]) for each in (VISUAL, PADDING))


def scores_of(rows):
    return torch.tensor([[score for _, score in row] for row in rows])


def of_each(counts, share):
    """That share of each number, rounded up."""
    return (counts * share.numerator + share.denominator - 1) // share.denominator


def kept(rows, share, keep):
    """`keep_positions` of rows of (kind, score)."""
    visual, padding = kinds_of(rows)
    kinds = visual, padding, leading(padding)
    counts = keep_counts(*kinds, of_each(visual.sum(1), share), keep)
    positions = keep_positions(scores_of(rows), *kinds, counts, keep)
    assert visual.gather(1, positions).sum(1).equal(counts.visual)
    return positions.tolist()


@st.composite
def batches(draw):
    """Rows of equal length, and how many positions they keep."""
    length = draw(st.integers(1, 24))
    token = st.tuples(st.sampled_from([TEXT, VISUAL, PADDING]), SCORES)
    rows = draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=1, max_size=3))
    most_text = max(sum(kind == TEXT for kind, _ in row) for row in rows)
    keep = draw(st.integers(max(most_text, 1), length))
    return rows, keep


@given(batches(), SHARES)
def test_gives_up_what_the_contract_says(batch, share):
    rows, keep = batch
    expected = []
    for row in rows:
        kinds, scores = zip(*row, strict=True)
        gone = given_up(kinds, scores, share, len(row) - keep)
        expected.append([at for at in range(len(row)) if at not in gone])
    assert kept(rows, share, keep) == expected


@given(batches(), SHARES, SHARES)
def test_a_cut_before_the_last_one_changes_nothing(batch, share, other):
    """Where all rows have as many visual tokens, and the scores stay."""
    rows, _ = batch
    counts = {sum(kind == VISUAL for kind, _ in row) for row in rows}
    assume(len(counts) == 1)
    (count,) = counts
    last, first = sorted([share, other])
    visual, padding = kinds_of(rows)
    scores, numbers = scores_of(rows), visual.sum(1)
    kinds = [visual, padding, leading(padding)]
    expected = None
    for stages in ([last], [first, last]):
        running, state = torch.arange(len(rows[0])).expand_as(visual), [scores, *kinds]
        for share in stages:
            keep = len(rows[0]) - count + math.ceil(share * count)
            counts = keep_counts(*state[1:], of_each(numbers, share), keep)
            positions = keep_positions(*state, counts, keep)
            running, *state = (each.gather(1, positions) for each in (running, *state))
        expected = running if expected is None else expected
    assert running.equal(expected)


def test_a_share_is_of_the_visual_tokens_that_a_row_itself_has():
    rows = ["tvvvvvvvvt", "tvvvvtpppp"]
    tokens = [[(kind, 0.0) for kind in row] for row in rows]
    # 10 - 6 + 3 = 7 of each: the second row gives up two of its four visual tokens, then padding from the end
    assert kept(tokens, Fraction(1, 2), 7) == [[0, 1, 2, 3, 4, 5, 9], [0, 1, 2, 5, 6, 7, 8]]


def test_infinite_scores_are_no_text():
    assert kept([[(VISUAL, INF), (TEXT, 0.0)]], Fraction(1, 20), 1) == [[1]]


@pytest.mark.parametrize("row", ["ppp", "pvp"])
def test_rows_without_text(row):
    assert len(kept([[(kind, 0.0) for kind in row]], Fraction(1, 2), 2)[0]) == 2

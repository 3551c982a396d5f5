"""The rule "What is kept", against a sort in Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from sharp_compile.kernels.keep import keep_positions

TEXT, VISUAL, PADDING = 0, 1, 2


@given(
    st.lists(
        st.tuples(st.sampled_from([TEXT, VISUAL, PADDING]), st.integers(-3, 3).map(float)), min_size=1, max_size=30
    ),
    st.integers(1, 30),
)
def test_keeps_text_then_visual_by_score_then_padding(tokens, keep):
    keep = min(keep, len(tokens))
    kinds = torch.tensor([[kind for kind, _ in tokens]])
    scores = torch.tensor([[score for _, score in tokens]])
    actual = keep_positions(scores, kinds == VISUAL, kinds == PADDING, keep)

    def importance(position):
        kind, score = tokens[position]
        return ([0, 1, 2][kind], -score if kind == VISUAL else 0, position)

    assert actual.tolist() == [sorted(sorted(range(len(tokens)), key=importance)[:keep])]


def test_each_row_for_itself():
    visual = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, 5.0, 6.0, 7.0]])
    kept = keep_positions(scores, visual, torch.zeros_like(visual), 2)
    assert kept.tolist() == [[1, 3], [0, 3]]


def test_scores_that_are_no_numbers_come_last():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[nan, -inf, 0.0, inf, 1.0]])
    visual = torch.ones(1, 5, dtype=torch.bool)
    assert keep_positions(scores, visual, ~visual, 3).tolist() == [[2, 3, 4]]


def test_a_text_token_wins_over_an_infinite_score():
    scores = torch.tensor([[float("inf"), 0.0]])
    visual = torch.tensor([[True, False]])
    assert keep_positions(scores, visual, torch.zeros_like(visual), 1).tolist() == [[1]]

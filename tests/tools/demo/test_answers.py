"""The demo's questions to the small trained model."""

import pytest

from sharp_compile.tools.demo.answers import ask
from sharp_compile.tools.demo.picture import page
from sharp_compile.tools.evaluation.scenes import WORLDS
from sharp_compile.tools.evaluation.score import NotPruned


def test_a_question_in_each_world_to_the_full_and_the_pruned_model():
    steps = []
    asked = ask(0.1, 1, "sharp", steps.append)
    assert [answer.exam.world for answer in asked] == list(WORLDS) and len(steps) == 3
    assert [answer.full.answers[0] for answer in asked] == [answer.right for answer in asked]
    for answer in asked:
        section = answer.section()
        assert answer.question in section.title and answer.right in section.title
        # 26 of 257 visual tokens, one of which is in no cell.
        assert section.kept.shape == (16, 4, 4) and section.kept.sum() in (25, 26)
    assert page([answer.section() for answer in asked]).height > 800


def test_a_cut_that_the_small_model_has_no_layers_for():
    with pytest.warns(UserWarning, match="leaves no later layer"), pytest.raises(NotPruned, match="no later layer"):
        ask(0.1, 9, "sharp", lambda step: None)

"""A model that answers an exam with `generate`, pruned and unpruned."""

import pytest

from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.prompts import VISUAL_TOKENS
from sharp_compile.tools.evaluation.run import load
from sharp_compile.tools.evaluation.scenes import WORLDS
from sharp_compile.tools.evaluation.score import NotPruned, grade, pruned


@pytest.fixture(scope="module", params=["seed-1", pytest.param("seed-2", marks=pytest.mark.slow)])
def trained(request):
    return load(MODELS / request.param)


@pytest.fixture(scope="module")
def first():
    return load(MODELS / "seed-1")


@pytest.fixture
def few(monkeypatch):
    """Small batches, of which the last is not full."""
    monkeypatch.setattr("sharp_compile.tools.evaluation.score.BATCH", 4)
    return hold_out("sparse", 6, 1)


@pytest.mark.parametrize("world", WORLDS)
def test_the_models_answer_what_they_have_not_seen(trained, world):
    model, tokenizer = trained
    assert grade(model, tokenizer, hold_out(world, 50, 12), False).right.mean() >= 0.9


def test_what_is_kept_decides_what_is_answered(trained):
    model, tokenizer = trained
    exam = hold_out("crowded", 50, 12)
    share = {}
    for selector in ("sharp", "random"):
        fast = pruned(model, inner="eager", selector=selector, retention=0.1)
        share[selector] = grade(fast, tokenizer, exam, True).right.mean()
    assert share["sharp"] >= 0.9 and share["random"] < 0.8


def test_without_the_video_nobody_could(first):
    model, tokenizer = first
    exam = hold_out("crowded", 50, 12)
    blank = type(exam)(exam.world, exam.frames * 0 + 127, exam.scenes, exam.questions)
    assert grade(model, tokenizer, blank, False).right.mean() < 0.5


def test_a_pruned_model_tells_which_cells_it_kept(first, few):
    model, tokenizer = first
    fast = pruned(model, inner="eager", selector="uniform", retention=0.1)
    steps = []
    graded = grade(fast, tokenizer, few, True, steps.append)
    places = [j * VISUAL_TOKENS // 26 for j in range(26)]
    assert steps == [4, 2] and len(graded.answers) == len(graded.right) == 6
    assert graded.kept.shape == (6, 16, 16)
    for cells in graded.kept:
        assert cells.reshape(-1).nonzero()[0].tolist() == [place for place in places if place < 256]


def test_a_retention_of_1_answers_as_the_full_model(first, few):
    model, tokenizer = first
    fast = pruned(model, inner="eager", retention=1.0)
    assert grade(fast, tokenizer, few, False).answers == grade(model, tokenizer, few, False).answers


def test_a_model_that_is_not_pruned_is_no_result(first, few):
    model, tokenizer = first
    with pytest.raises(NotPruned, match="the backend was given no graph"):
        grade(model, tokenizer, few, True)

"""Tiny models against the eager model pruned by hand: right as they are, wrong where ours is."""

import pytest
import torch

import sharp_compile
from sharp_compile.selectors import context
from sharp_compile.tools.check import families
from sharp_compile.tools.check.by_hand import pruned_by_hand


@pytest.fixture(autouse=True)
def fresh():
    yield
    torch._dynamo.reset()
    sharp_compile.reset()


def check(monkeypatch, name):
    monkeypatch.setattr(families, "FAMILIES", {name: families.FAMILIES[name]})
    return families.check("cpu")


@pytest.mark.parametrize(
    "name",
    [name if name == "InternVL" else pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES],
)
def test_right(monkeypatch, name):
    forward, generate, *further = check(monkeypatch, name)
    assert (forward.name, generate.name) == (f"{name}, forward", f"{name}, generate")
    assert (forward.right, generate.right) == (True, True)
    assert [each.name for each in further] == [f"{name}, {call}" for call in families._FURTHER_CALLS.get(name, {})]
    assert all(each.right for each in further)


@pytest.fixture
def switched(monkeypatch):
    """The verdict on the model that says that it was loaded with FlashAttention."""
    monkeypatch.setattr(families, "_CALLS", {})
    return lambda: next(check(monkeypatch, "LLaVA-OneVision"))


def test_loaded_with_flash_attention(switched):
    found = switched()
    assert found.name == "LLaVA-OneVision, loaded with FlashAttention"
    assert found.right is True, found.told
    assert found.told.startswith("switched to SDPA; 77 -> ")


def test_one_that_is_not_switched_is_wrong(switched, monkeypatch):
    monkeypatch.setattr("sharp_compile.integrations.transformers.flash_attention._flash_name", lambda model: None)
    found = switched()
    assert (found.right, found.told) == (False, "the language model stays with flash_attention_2")


def test_one_that_is_switched_and_does_not_say_so_is_wrong(switched, monkeypatch):
    monkeypatch.setattr(
        "sharp_compile.integrations.transformers.flash_attention.warnings",
        type("Quiet", (), {"warn": lambda *a, **k: 0}),
    )
    found = switched()
    assert (found.right, found.told) == (False, "no warning says that it was switched to SDPA")


@pytest.mark.slow
def test_one_that_is_switched_and_wrong(switched, monkeypatch):
    monkeypatch.setattr(
        families, "pruned_by_hand", lambda layers, kept, length: pruned_by_hand(layers[1:], kept, length)
    )
    found = switched()
    assert found.right is False
    assert found.told.startswith("switched to SDPA; 77 -> ")


def test_wrong_scores(monkeypatch):
    right = context.attention_rows
    monkeypatch.setattr(context, "attention_rows", lambda query, key, mask, scale: right(query, key, mask, -scale))
    forward = next(check(monkeypatch, "InternVL"))
    assert forward.right is False
    assert forward.told.startswith("row 0: a token with a score of ")


@pytest.mark.filterwarnings("ignore:sharp_compile runs a graph unpruned")
def test_nothing_pruned(monkeypatch):
    monkeypatch.setattr(families, "_LAYER", 9)
    forward = next(check(monkeypatch, "InternVL"))
    assert forward.right is False
    assert "0 graphs were pruned instead of one: " in forward.told
    assert "layer=9 leaves no later layer to shorten" in forward.told


def test_what_is_wrongly_chosen():
    scores = torch.tensor([[0.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0, 0.0]])
    visual = torch.tensor([[False, True, True, True, True, False]] * 2)
    real = torch.ones_like(visual)

    def told(*kept):
        return families._wrongly_chosen(scores, visual, real, torch.tensor(kept))

    assert told([0, 1, 5], [0, 4, 5]) is None
    assert told([0, 1, 2, 5], [0, 3, 4, 5]) == "4 tokens are kept instead of 3"
    assert told([0, 1, 5], [0, 3, 5]) == "row 1: a token with a score of 4 was dropped, one with 3 was kept"
    assert told([0, 1, 2], [0, 4, 5]) == "row 0: text was dropped"
    real[1, 0] = False
    assert told([0, 1, 5], [0, 4, 5]) == "row 1: padding was kept"
    assert told([0, 1, 5], [3, 4, 5]) is None


def test_layers_pruned_by_hand_see_the_kept_positions():
    class Layer(torch.nn.Module):
        def forward(self, hidden, attention_mask=None, position_embeddings=None, position_ids=None):
            self.seen = attention_mask, position_embeddings, position_ids
            return hidden + 1

    layer, kept = Layer(), torch.tensor([[0, 2, 5], [1, 2, 5]])
    hidden, table = torch.arange(12.0).view(2, 6, 1), torch.arange(6.0).view(1, 6, 1)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    with pruned_by_hand([layer], kept, 6):
        whole = layer(hidden, attention_mask=mask, position_embeddings=(table,), position_ids=torch.arange(6)[None])
        seen, (tables,), positions = layer.seen
        assert positions.tolist() == kept.tolist()
        assert tables[..., 0].tolist() == kept.tolist()
        assert seen.equal(torch.ones(2, 1, 3, 3, dtype=torch.bool).tril())
        layer(hidden[:, :1], attention_mask=torch.arange(8).view(1, 1, 1, 8).expand(2, 1, 1, 8))
        assert layer.seen[0].flatten(1).tolist() == [[0, 2, 5, 6, 7], [1, 2, 5, 6, 7]]
    assert whole[0, [0, 2, 5], 0].tolist() == [1, 3, 6]
    assert whole[0, [1, 3, 4]].isnan().all()
    assert layer(hidden).equal(hidden + 1)

"""Code after the decoder: heads that address tokens by position, pair them with the prompt, or sum them up.

A model by hand gives the hidden states of the kept tokens. What speaks of positions of the whole sequence reads them
expanded: at each position the last kept one that is not after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import sharp_compile
from sharp_compile.report import latest_kept
from tests.toy import Toy, toy_inputs

OPTIONS = {"retention": 0.25, "layer": 1, "selector": "uniform", "inner": "eager", "on_skip": "raise"}

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


class Broken(Toy):
    """Dynamo breaks in front of its layers: they are in a graph of an inner frame."""

    def positions(self, hidden: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        torch._dynamo.graph_break()
        return super().positions(hidden, attention_mask)


class Headed(nn.Module):
    """A toy decoder with a head, in one graph with it or after a break."""

    def __init__(self, head: Head, breaks: str) -> None:
        super().__init__()
        self.decoder = Broken(layers=3) if breaks == "inside" else Toy(layers=3)
        self.decoder.head = nn.Identity()
        self.head, self.breaks = head, breaks

    def forward(self, ids: Tensor, features: Tensor, attention_mask: Tensor) -> Any:
        hidden, _ = self.decoder(ids, features, attention_mask)
        if self.breaks == "behind":
            torch._dynamo.graph_break()
        return self.head(hidden, ids, attention_mask)


# Heads that speak of positions of the whole sequence, and heads of the tokens that there are.


def last_three(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, -3:].tanh()


def first(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0].tanh()


def at_positions(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden.tanh()[:, torch.tensor([4, 9, 15, 16, 17, 27])]


def at_a_list(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden.tanh()[:, [4, 15, 17]]


def last_token(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    last = (torch.arange(ids.shape[1]) * mask).argmax(-1)
    return hidden.tanh()[torch.arange(len(ids)), last]


def gathered(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    last = (torch.arange(ids.shape[1]) * mask).argmax(-1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def shifted_states(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    of_text = (mask[:, 1:] * (ids[:, 1:] < 49)).unsqueeze(-1)
    return (hidden[:, :-1] * of_text).tanh()


AT_POSITIONS = [last_three, at_positions, at_a_list, last_token, first, gathered, shifted_states]


def retrieval(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    embeddings = hidden / hidden.norm(dim=-1, keepdim=True)
    return embeddings * mask.unsqueeze(-1)


def masked_mean(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def masked_mean_of_channels(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    every = mask.unsqueeze(-1).expand(hidden.size()).to(hidden.dtype)
    return torch.sum(hidden * every, 1) / torch.clamp(every.sum(1), min=1e-9)


def some_hidden(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    logits = hidden.tanh()
    logits[:, :, [1, 3]] = -1e9
    return logits


def plain_mean(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden.tanh().mean(1)


def largest(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -1e9).amax(1)


def attentive(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    weights = hidden.sum(-1).masked_fill(mask == 0, -1e9).softmax(-1)
    return torch.einsum("bs,bsc->bc", weights, hidden)


OF_TOKENS = [retrieval, some_hidden, masked_mean, masked_mean_of_channels, plain_mean, largest, attentive]


def next_token_loss(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    labels = torch.where((ids == 49) | (mask == 0), -100, ids % hidden.shape[-1])
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(hidden.flatten(0, 1), targets.flatten(), ignore_index=-100)


def run(head: Head, breaks: str, inputs: dict[str, Tensor], **options: Any) -> tuple[Headed, Any, Tensor]:
    """The compiled model, what it returned, and the hidden states of the kept tokens by hand."""
    torch._dynamo.reset()
    sharp_compile.reset()
    model = Headed(head, breaks)
    fast = torch.compile(model, backend="sharp", options=options or OPTIONS)
    result = fast(**inputs)
    assert any(report.pruned for report in sharp_compile.reports())
    kept = latest_kept()
    assert kept is not None and kept.shape[1] < inputs["ids"].shape[1]
    return model, result, kept


def by_hand(model: Headed, kept: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return Toy.forward(model.decoder, **inputs, cut={1: kept})[0]


def expanded(hidden: Tensor, kept: Tensor, length: int) -> Tensor:
    """``hidden`` of the kept tokens at all positions of the whole sequence; written with loops."""
    rows = []
    for states, positions in zip(hidden, kept.tolist(), strict=True):
        latest = [max([place for place, at in enumerate(positions) if at <= p], default=0) for p in range(length)]
        rows.append(states[latest])
    return torch.stack(rows)


SLOW = pytest.mark.slow
BREAKS = ["nowhere", pytest.param("behind", marks=SLOW), "inside"]
ROWS = [
    pytest.param({"rows": 1, "pad": [2]}, id="one row", marks=SLOW),
    pytest.param({"rows": 2, "pad": [0, 3]}, id="two rows"),
]


def some_slow(heads: list[Head], quick: int) -> list[Any]:
    """The first `quick` of `heads` as they are, the others as slow tests."""
    return [
        pytest.param(head, id=head.__name__, marks=[SLOW] if place >= quick else []) for place, head in enumerate(heads)
    ]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("head", some_slow(AT_POSITIONS, 3))
def test_positions_are_those_of_the_whole_sequence(head: Head, breaks: str, rows: dict[str, Any]) -> None:
    inputs = toy_inputs(visual=20, text=6, **rows)
    model, actual, kept = run(head, breaks, inputs)
    full = expanded(by_hand(model, kept, inputs), kept, inputs["ids"].shape[1])
    assert_close(actual, head(full, inputs["ids"], inputs["attention_mask"]))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("head", some_slow(OF_TOKENS, 2))
def test_tokens_are_the_kept_ones(head: Head, breaks: str, rows: dict[str, Any]) -> None:
    inputs = toy_inputs(visual=20, text=6, **rows)
    model, actual, kept = run(head, breaks, inputs)
    hidden = by_hand(model, kept, inputs)
    assert_close(actual, head(hidden, inputs["ids"].gather(1, kept), inputs["attention_mask"].gather(1, kept)))


@pytest.mark.parametrize("breaks", BREAKS)
def test_loss_and_gradients(breaks: str) -> None:
    inputs = toy_inputs(visual=20, text=6, rows=2, pad=[0, 3])
    model, actual, kept = run(next_token_loss, breaks, inputs)
    targets = torch.where((inputs["ids"] == 49) | (inputs["attention_mask"] == 0), -100, inputs["ids"] % 16)
    targets = F.pad(targets[:, 1:], (0, 1), value=-100).gather(1, kept)
    expected = F.cross_entropy(by_hand(model, kept, inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert_close(actual, expected)
    weights = [weight for weight in model.decoder.parameters() if weight.requires_grad]
    theirs = torch.autograd.grad(expected, weights, allow_unused=True)
    ours = torch.autograd.grad(actual, weights, allow_unused=True)
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their)


def beside_own(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """As a decoder attends to its own tokens and to those of an encoder, in one attention."""
    own = hidden.new_ones(hidden.shape[0], 1, 2, hidden.shape[2])
    tokens = torch.cat([own, hidden.unsqueeze(1)], 2)
    return F.scaled_dot_product_attention(own, tokens, tokens)


def to_the_first_ten(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    tokens = hidden[:, :10].unsqueeze(1)
    return F.scaled_dot_product_attention(tokens, tokens, tokens)


@pytest.mark.parametrize(
    ("head", "breaks", "error"),
    [
        (to_the_first_ten, "nowhere", "each dropped one would count as a copy"),
        (to_the_first_ten, "behind", "attends to its hidden states, of which there are fewer"),
        (beside_own, "nowhere", "appends tokens to others"),
        (beside_own, "behind", "attends to its hidden states, of which there are fewer"),
    ],
)
def test_no_dropped_token_counts_as_a_copy_of_another(head: Head, breaks: str, error: str) -> None:
    with pytest.raises((sharp_compile.CannotPrune, ValueError), match=error):
        run(head, breaks, toy_inputs(visual=20, text=6, pad=[2]))


@pytest.mark.slow
@pytest.mark.parametrize("breaks", ["nowhere", "behind", "inside"])
@pytest.mark.parametrize("head", [last_token, masked_mean], ids=lambda head: head.__name__)
def test_two_lengths_and_a_prompt_that_is_not_pruned(head: Head, breaks: str) -> None:
    inputs = toy_inputs(visual=20, text=6, rows=2, pad=[0, 3])
    model, _, _ = run(head, breaks, inputs)
    fast = torch.compile(model, backend="sharp", options=OPTIONS)
    fast(**inputs)
    for visual in (32, 40):
        longer = toy_inputs(visual=visual, text=7, rows=2, pad=[0, 3])
        actual, kept = fast(**longer), latest_kept()
        assert kept is not None and kept.shape[1] < longer["ids"].shape[1]
        hidden, ids, mask = by_hand(model, kept, longer), longer["ids"], longer["attention_mask"]
        if head is last_token:
            assert_close(actual, head(expanded(hidden, kept, ids.shape[1]), ids, mask))
        else:
            assert_close(actual, head(hidden, ids.gather(1, kept), mask.gather(1, kept)))


@pytest.mark.parametrize("breaks", ["nowhere", "behind"])
def test_positions_behind_several_cuts(breaks: str) -> None:
    cuts = {name: value for name, value in OPTIONS.items() if name not in ("retention", "layer")}
    cuts["stages"] = [(0, 0.5), (1, 0.25)]
    inputs = toy_inputs(visual=20, text=6, rows=2, pad=[0, 3])
    _, hidden, _ = run(lambda hidden, ids, mask: hidden, "nowhere", inputs, **cuts)
    _, actual, kept = run(at_positions, breaks, inputs, **cuts)
    assert hidden.shape[1] == kept.shape[1]
    full = expanded(hidden, kept, inputs["ids"].shape[1])
    assert_close(actual, at_positions(full, inputs["ids"], inputs["attention_mask"]))


def test_states_are_short_where_no_code_is_behind_them() -> None:
    inputs = toy_inputs(visual=20, text=6, rows=2, pad=[0, 3])
    model = Broken(layers=3)
    model.head = nn.Identity()
    hidden, _ = torch.compile(model, backend="sharp", options=OPTIONS)(**inputs)
    kept = latest_kept()
    assert kept is not None
    assert_close(hidden, Toy.forward(model, **inputs, cut={1: kept})[0])

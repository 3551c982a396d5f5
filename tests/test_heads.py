"""Heads of transformers' models after the decoder, compared with the hooked eager model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

import sharp_compile
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.backend.test_tail_graph import expanded
from tests.support import TOLERANCE, forward, generate

LAYERS = 4
CASE = {"selector": "uniform", "retention": 0.25, "layer": 1}

pytestmark = pytest.mark.usefixtures("room_for_many_graphs")


def prepared(name: str) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """An eager model, a compiled copy, and inputs of two rows with padding in front of one."""
    model = shared_model(name, layers=LAYERS)
    fast = compiled(model)
    return model, fast, ALL_ARCHITECTURES[name].inputs(model, frames=6, pad=[0, 3], seed=1)


def compiled(model: nn.Module) -> nn.Module:
    fast = deepcopy(model)
    fast.compile(backend="sharp", options=CASE | {"inner": "eager", "on_skip": "raise"})
    return fast


def pruned(call: Any, model: nn.Module, **case: Any) -> tuple[Any, Tensor]:
    """What a call gives with the model pruned by hand, and the kept positions."""
    with oracle.prune(model, **CASE | case) as run, torch.no_grad():
        return call(), run.kept[0]


def states_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The last hidden states, which the head reads."""
    return model(**inputs, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize(
    "name",
    [
        "llava_onevision",
        pytest.param("qwen2_5_vl", marks=pytest.mark.slow),
        pytest.param("gemma3", marks=pytest.mark.slow),
    ],
)
def test_logits_to_keep(name: str) -> None:
    model, fast, inputs = prepared(name)
    logits, kept = pruned(lambda: model(**inputs).logits, model)
    length = inputs["input_ids"].shape[1]
    full = expanded(logits, kept, length)
    for wanted in (1, 9, torch.tensor([4, length // 2, length - 2])):
        for states in (False, True):
            output = forward(fast, inputs | {"logits_to_keep": wanted, "output_hidden_states": states})
            at = torch.arange(length - wanted, length) if isinstance(wanted, int) else wanted
            assert_close(output.logits, full[:, at], **TOLERANCE)
            if states:
                assert output.hidden_states[-1].shape[1] == kept.shape[1]


def test_generation_takes_the_last_position() -> None:
    model, fast, inputs = prepared("llava_onevision")
    expected, _ = pruned(lambda: generate(model, inputs).sequences, model)
    assert generate(fast, inputs).sequences.tolist() == expected.tolist()


def test_states_of_a_model_without_a_head_are_short() -> None:
    model, _, inputs = prepared("llava_onevision")
    expected, kept = pruned(lambda: states_of(model, inputs), model)
    assert expected.shape[1] == kept.shape[1]
    assert_close(forward(compiled(model.model), inputs).last_hidden_state, expected, **TOLERANCE)


def test_sequence_classification() -> None:
    model, _, inputs = prepared("gemma3")
    classifier = transformers.Gemma3ForSequenceClassification._from_config(deepcopy(model.config)).eval()
    classifier.model.load_state_dict(model.model.state_dict())
    states, kept = pruned(lambda: states_of(model, inputs), model)
    full = expanded(states, kept, inputs["input_ids"].shape[1])
    last = (torch.arange(full.shape[1]) * (inputs["input_ids"] != model.config.get_text_config().pad_token_id)).argmax(
        -1
    )
    with torch.no_grad():
        expected = classifier.score(full)[torch.arange(2), last]
    assert_close(forward(compiled(classifier), inputs).logits, expected, **TOLERANCE)


def test_label_smoothing_of_trainer() -> None:
    smoother = pytest.importorskip("transformers.trainer_pt_utils").LabelSmoother(0.1)
    model, fast, inputs = prepared("llava_onevision")
    labels = torch.where(inputs["attention_mask"] == 0, -100, inputs["input_ids"])
    logits, kept = pruned(lambda: model(**inputs).logits, model)
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100).gather(1, kept)
    expected = smoother({"logits": logits}, targets)
    assert_close(smoother(forward(fast, inputs), labels, shift_labels=True), expected, **TOLERANCE)
    stock = forward(model, inputs)
    assert_close(
        smoother(stock, labels, shift_labels=True), type(smoother).__call__.__wrapped__(smoother, stock, labels, True)
    )


@pytest.mark.slow
def test_balancing_loss_of_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast, inputs = prepared("qwen3_vl_moe")
    labels = torch.where(inputs["attention_mask"] == 0, -100, inputs["input_ids"])
    asked = inputs | {"output_router_logits": True}
    loss = forward(fast, asked | {"labels": labels}).loss
    report = next(report for report in sharp_compile.reports() if report.pruned)
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        module = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe.load_balancing_loss_func"
        patch.setattr(module, lambda gates, *_: seen.append(gates) or torch.zeros(()))
        logits, kept = pruned(lambda: model(**asked).logits, model, layer=report.layer)
    config = model.config.get_text_config()
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100).gather(1, kept)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    aux = balance(seen[0], inputs["attention_mask"], kept, config.num_experts_per_tok)
    assert_close(loss, expected + config.router_aux_loss_coef * aux, **TOLERANCE)


def balance(gates: tuple[Tensor, ...], mask: Tensor, kept: Tensor, chosen: int) -> Tensor:
    """The balancing loss over the tokens that each layer has."""
    weights = [(mask if len(gate) == mask.numel() else mask.gather(1, kept)).flatten().float() for gate in gates]
    weight, scores = torch.cat(weights), torch.cat(gates).softmax(-1)
    assert len(scores) < len(gates) * mask.numel()
    share = torch.zeros_like(scores).scatter(1, scores.topk(chosen).indices, 1.0)
    return scores.shape[1] * ((weight @ share) * (weight @ scores)).sum() / weight.sum() ** 2

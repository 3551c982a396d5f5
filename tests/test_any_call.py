"""Any call of any architecture: pruned as the oracle prunes by hand, or as the model is with a reason."""

from __future__ import annotations

import gc
import warnings
from copy import deepcopy
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, reject, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close
from transformers import StaticCache
from transformers.integrations.flex_attention import WrappedFlexAttention

import sharp_compile
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.support import TOLERANCE, assert_same_logits, forward, generate

NOTHING_VISUAL = "no visual tokens are injected in this graph"

CASES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(list(ALL_ARCHITECTURES)),
        "attention": st.sampled_from(["sdpa", "eager", "flex_attention"]),
        "dtype": st.sampled_from([torch.float32] * 4 + [torch.bfloat16]),
        "call": st.sampled_from(["forward", "last logits", "greedy", "beams", "sampling"]),
        "cache": st.sampled_from(["dynamic", "static", "none"]),
        "pad": st.lists(st.integers(0, 4), min_size=1, max_size=4),
        "options": st.fixed_dictionaries(
            {
                "retention": st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9, 1.0]),
                "layer": st.integers(0, 3),
                "selector": st.sampled_from(["uniform", "fastv"]),
            }
        ),
    }
)
GENERATION = {"greedy": {}, "beams": {"num_beams": 2}, "sampling": {"do_sample": True, "top_k": 5}}


def run(model, inputs, call, cache):
    """The output of a call, of 3 tokens where it generates."""
    if call in GENERATION:
        torch.manual_seed(0)
        options = {"none": {"use_cache": False}, "static": {"cache_implementation": "static"}}.get(cache, {})
        return generate(model, inputs, max_new_tokens=3, output_scores=True, **GENERATION[call], **options)
    options = {"logits_to_keep": 1} if call == "last logits" else {}
    if cache == "static":
        text = model.config.get_text_config(decoder=True)
        options["past_key_values"] = StaticCache(config=text, max_cache_len=inputs["input_ids"].shape[1] + 5)
    return forward(model, inputs | options | ({"use_cache": False} if cache == "none" else {}))


def assert_same(actual, expected, inputs, call):
    if call not in GENERATION:
        return assert_same_logits(actual.logits, expected.logits, inputs)
    assert actual.sequences.tolist() == expected.sequences.tolist()
    if call == "beams":
        return assert_close(actual.sequences_scores, expected.sequences_scores, **TOLERANCE)
    return assert_close(torch.stack(actual.logits), torch.stack(expected.logits), **TOLERANCE)


def check(name, attention, dtype, call, cache, pad, options):
    """One call with these options does what it is to do, and tells it."""
    torch._dynamo.reset()
    sharp_compile.reset()
    try:
        model = deepcopy(shared_model(name, attn_implementation=attention)).to(dtype)
        inputs = ALL_ARCHITECTURES[name].inputs(model, pad=pad)
        inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        unpruned = run(model, inputs, call, cache)
    except Exception as error:  # of transformers, which doesn't support everything
        note(f"transformers: {error!r}")
        reject()
    fast = sharp_compile.compile(deepcopy(model), inner="eager", **options)
    actual = run(fast, inputs, call, cache)
    gc.collect()  # embeddings that no decoder read are told of when they are gone
    reports = [report for report in sharp_compile.reports() if report.reason != NOTHING_VISUAL]
    for report in reports:
        note(f"{'pruned' if report.pruned else 'not pruned'}: {report.reason}")
    assert all(report.reason for report in reports)
    assert reports
    if dtype is not torch.float32:
        last = actual.logits[-1] if call in GENERATION else actual.logits[:, -1]
        assert last.isfinite().any(-1).all() and not last.isnan().any()
    elif pruned := [report for report in reports if report.pruned]:
        # A model whose first layers have no attention is cut behind the first that has, whatever the selector.
        layer = pruned[0].layer
        assert all(r.layer == layer and (layer == options["layer"] or "moved to" in r.reason) for r in pruned)
        # The same weights; the oracle shortens dense masks only.
        by_hand = shared_model(name, attn_implementation="sdpa") if attention == "flex_attention" else model
        with oracle.prune(by_hand, **options | {"layer": layer}):
            expected = run(by_hand, inputs, call, "dynamic" if cache == "static" else cache)
        assert_same(actual, expected, inputs, call)
    else:
        assert_same(actual, unpruned, inputs, call)


@pytest.mark.usefixtures("room_for_many_graphs")
@pytest.mark.parametrize("examples", [2, pytest.param(150, marks=pytest.mark.slow)])
def test_any_call(examples):
    """The few are the same each time. A case is small as it is, and another try costs seconds: nothing is shrunk."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples == 4,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(CASES)
    def any_call(case):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(**case)

    # Inductor's flex_attention for the CPU is slow to compile and ends the process in the tower of Mistral 3.
    with mock.patch.object(WrappedFlexAttention, "__call__", lambda self: flex_attention):
        any_call()

"""Random calls of random models: each is pruned as the oracle prunes by hand, or runs unpruned with a reason.

A case is a compiled model and one or two calls of it. It follows from the seed of `tests.rotation` and its number:
`SHARP_TEST_SEED=17 pytest "tests/fuzz/test_calls.py::test_call[3]"` runs case 3 of seed 17 again.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.testing import assert_close
from transformers import StaticCache
from transformers.integrations.flex_attention import WrappedFlexAttention
from transformers.utils import output_capturing

import sharp_compile
from sharp_compile import report
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model, text_only
from tests.rotation import seed
from tests.support import (
    TOLERANCE,
    assert_same_logits,
    forward,
    generate,
    second_turn,
    with_padding_moved,
)

FEW, ALL = 3, 500
# Of the few of seed 0, what no pass means to prune: declining more would be no error otherwise.
DECLINED = {4}
NEW = 2
NOTHING_VISUAL = "no visual tokens are injected in this graph"
GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2, "output_scores": True},
    "sampling": {"do_sample": True, "top_k": 5},
}
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "none": {"use_cache": False},
}
# Of another attention than the oracle's: those of the stock model differ by 3e-4 (gemma4, whose logits go to 18).
DENSE = {"atol": 1e-3, "rtol": 1e-3}
# Without a cache each token is chosen by another last position: of these the oracle scores each time anew.
SELECTORS = ("uniform", "fastv", "visiondrop", "sparsevlm")


@dataclass(frozen=True)
class Call:
    """One call: what is called, with which cache and which rows.

    ``options`` are those that the model is compiled with before the call, None to leave it as it is. ``logits`` is the
    number of positions that a forward call is to give logits of, 0 for all. ``turn`` asks a second time on the cache.
    """

    kind: str
    cache: str
    rows: tuple[tuple[str, Any], ...]
    where: str
    options: dict[str, Any] | None
    logits: int = 0
    turn: bool = False


@dataclass(frozen=True)
class Case:
    """A model, and the calls of it."""

    name: str
    attention: str
    dtype: torch.dtype
    calls: tuple[Call, ...]


def draw(random: Random) -> Case:
    name = random.choice(list(ALL_ARCHITECTURES))
    first = draw_call(random, name, draw_options(random))
    calls = [first]
    if random.random() < 0.3:
        changed = draw_options(random) if random.random() < 0.4 else None
        calls.append(draw_call(random, name, changed))
    # Not compiled, flex_attention takes the better part of a minute for the tokens of an answer.
    is_short = all(call.kind == "forward" for call in calls)
    attention = random.choice(["sdpa"] * 6 + ["eager", "flex_attention" if is_short else "sdpa"])
    return Case(name, attention, random.choice([torch.float32] * 9 + [torch.bfloat16]), tuple(calls))


def draw_options(random: Random) -> dict[str, Any]:
    options: dict[str, Any] = {"selector": random.choice(SELECTORS)}
    if random.random() < 0.2:
        first, second = sorted(random.sample(range(4), 2))
        return options | {"stages": [(first, random.choice([0.5, 0.8])), (second, random.choice([0.1, 0.3]))]}
    return options | {"retention": random.choice([0.05, 0.1, 0.25, 0.5, 0.9]), "layer": random.randrange(4)}


def draw_call(random: Random, name: str, options: dict[str, Any] | None) -> Call:
    batch = random.choice([1, 1, 2, 3])
    rows: dict[str, Any] = {"pad": [random.choice([0, 0, 2, 5]) for _ in range(batch)], "seed": random.randrange(3)}
    if ALL_ARCHITECTURES[name].ragged and batch > 1 and random.random() < 0.3:
        rows["frames"] = [random.choice([4, 8]) for _ in range(batch)]
    elif random.random() < 0.3:
        rows["text"] = [random.choice([12, 20]) for _ in range(batch)]
    kind = random.choice(["forward"] * 3 + ["greedy"] * 2 + ["beams", "sampling"])
    cache = random.choice(list(CACHES))
    return Call(
        kind,
        cache,
        tuple(rows.items()),
        random.choice(["front", "behind", "between", "everywhere"]),
        options,
        random.choice([0, 0, 1, 3]) if kind == "forward" else 0,
        kind == "greedy" and cache == "dynamic" and random.random() < 0.3,
    )


def inputs_of(case: Case, call: Call, model: torch.nn.Module) -> dict[str, Any]:
    inputs = ALL_ARCHITECTURES[case.name].inputs(model, **dict(call.rows))
    inputs = with_padding_moved(inputs, call.where)
    return {name: value.to(case.dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def run(model: torch.nn.Module, call: Call, inputs: dict[str, Any]) -> Any:
    """The output of a call; of its second turn where it has one."""
    # With any backend, a compiled call may leave the collector of hidden states to later calls (transformers 5.23).
    vars(output_capturing._active_collector).update(compiling=False, global_var=None)
    if call.kind in GENERATION:
        torch.manual_seed(0)
        first = generate(model, inputs, max_new_tokens=NEW, **GENERATION[call.kind], **CACHES[call.cache])
        if not call.turn:
            return first
        turn = second_turn(inputs, first, text_only(4, len(inputs["input_ids"])))
        return generate(model, turn, max_new_tokens=NEW)
    options: dict[str, Any] = {"use_cache": False} if call.cache == "none" else {}
    if call.cache == "static":
        text = model.config.get_text_config(decoder=True)
        options["past_key_values"] = StaticCache(config=text, max_cache_len=inputs["input_ids"].shape[1] + 5)
    if call.logits:
        options["logits_to_keep"] = call.logits
    return forward(model, inputs | options)


def assert_same(
    call: Call,
    actual: Any,
    expected: Any,
    inputs: dict[str, Any],
    by_hand: oracle.Run | None,
    tolerance: Mapping[str, float] = TOLERANCE,
) -> None:
    """`expected` has the logits of all positions that are left, whatever the call asked for."""
    if call.kind == "forward" and call.logits:
        assert_logits_of_last(call.logits, actual.logits, expected.logits, inputs, by_hand, tolerance)
    elif call.kind == "forward":
        assert_same_logits(actual.logits, expected.logits, inputs, by_hand, tolerance)
    else:
        assert actual.sequences.tolist() == expected.sequences.tolist()
        if call.kind == "beams":
            assert_close(actual.sequences_scores, expected.sequences_scores, **TOLERANCE)
        else:
            assert_close(torch.stack(actual.logits), torch.stack(expected.logits), **TOLERANCE)


def assert_logits_of_last(
    number: int,
    actual: torch.Tensor,
    left: torch.Tensor,
    inputs: dict[str, Any],
    by_hand: oracle.Run | None,
    tolerance: Mapping[str, float],
) -> None:
    """The logits of a position are those of the last one not after it among what is `left`."""
    rows, length = inputs["input_ids"].shape
    kept = torch.arange(length).expand(rows, -1) if by_hand is None else by_hand.kept[-1]
    assert actual.shape == (rows, number, left.shape[2])
    for row in range(rows):
        for place, position in enumerate(range(length - number, length)):
            if inputs["attention_mask"][row, position]:
                nearest = int((kept[row] <= position).sum()) - 1
                assert_close(actual[row, place], left[row, nearest], **tolerance)


def check(case: Case) -> bool:
    """Runs a case; returns whether every call of it was pruned."""
    model = deepcopy(shared_model(case.name, attn_implementation=case.attention)).to(case.dtype)
    # The same weights; the oracle shortens dense masks only.
    dense = shared_model(case.name, attn_implementation="sdpa") if case.attention == "flex_attention" else model
    fast, options, all_pruned = deepcopy(model), {}, True
    for call in case.calls:
        inputs = inputs_of(case, call, model)
        if call.options is not None:
            options = call.options
            fast = sharp_compile.compile(fast, inner="eager", **options)
        with report.watch() as graphs:
            actual = run(fast, call, inputs)
            gc.collect()  # embeddings that no decoder read are told of when they are gone
        pruned = [graph for graph in graphs if graph.pruned]
        reasons = {graph.reason for graph in sharp_compile.reports() if not graph.pruned} - {NOTHING_VISUAL}
        assert pruned or any(reasons), "unpruned in silence"
        all_pruned &= bool(pruned)
        if case.dtype is not torch.float32:
            last = actual.logits[-1] if call.kind in GENERATION else actual.logits[:, -1]
            assert last.isfinite().any(-1).all() and not last.isnan().any()
        elif pruned:
            asked = options if "stages" in options else options | {"layer": pruned[-1].layer}
            # The oracle prunes no static cache; the numbers are those of a dynamic one.
            call_by_hand = replace(call, logits=0, cache="dynamic" if call.cache == "static" else call.cache)
            with oracle.prune(dense, **asked) as by_hand:
                expected = run(dense, call_by_hand, inputs)
            assert_same(call, actual, expected, inputs, by_hand, DENSE if dense is not model else TOLERANCE)
        else:
            assert_same(call, actual, run(model, replace(call, logits=0), inputs), inputs, None)
    return all_pruned


def possible(number: int) -> Case:
    """Case `number`: the first of those drawn whose calls the stock model takes, and are no error by contract."""
    random = Random(f"{seed()} {number}")
    for _ in range(20):
        case = draw(random)
        try:
            model = deepcopy(shared_model(case.name, attn_implementation=case.attention)).to(case.dtype)
            for call in case.calls:
                output = run(model, call, inputs_of(case, call, model))
                if call.logits and output.logits.shape[1] != call.logits:
                    raise ValueError("the model gives logits of all positions, whatever it is asked for")
        except (Exception, pytest.skip.Exception):  # of transformers, which doesn't support everything
            continue
        return case
    raise AssertionError("transformers takes none of twenty calls")


@pytest.mark.usefixtures("room_for_many_graphs")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [pytest.param(n, marks=[] if n < FEW else [pytest.mark.slow]) for n in range(ALL)])
def test_call(number):
    # Inductor's flex_attention for the CPU is slow to compile and ends the process in the tower of Mistral 3.
    with warnings.catch_warnings(), mock.patch.object(WrappedFlexAttention, "__call__", lambda self: flex_attention):
        warnings.simplefilter("ignore")
        case = possible(number)
        print(f"SHARP_TEST_SEED={seed()}, case {number}: {case}")
        all_pruned = check(case)
    assert all_pruned or seed() != 0 or number in DECLINED or number >= FEW

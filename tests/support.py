"""How the tests call models, and how they compare a compiled one with the oracle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any

import torch
from sharp_compile.passes.rewrite.reuse_regions import reuse_regions
from torch import nn
from torch.fx import GraphModule
from torch.testing import assert_close

from tests import oracle

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}  # the logits of the tiny models are about 4, cached values about 1
NEW = 5  # tokens that are generated
_WINDOWS = ("sliding_window", "sliding_window_size")  # what configs and modules call the length of a window

Inputs = Mapping[str, Any]


@contextmanager
def logged(name: str, level: int) -> Iterator[list[str]]:
    """The messages of a logger and those below it, with tracebacks, while it is open."""
    messages: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(handler.format(record))  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def layers_once(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """An inner backend that runs a graph as it is, but equal layers as calls of one, as Inductor gets them."""
    return (reuse_regions(module) or module).forward


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """One call, no gradients."""
    with torch.no_grad():
        return model(**inputs)


def generate(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """`model.generate`, greedy unless told otherwise, with `sequences`, `logits` and `past_key_values`."""
    options = {"max_new_tokens": NEW, "do_sample": False} | options
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)


def extended(inputs: Inputs, tokens: torch.Tensor, token_type: int = 0) -> dict[str, Any]:
    """The inputs with the text `tokens` [B, N] of this type after them."""
    longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], tokens], 1))
    values = {"attention_mask": 1, "image_embeds_position_mask": 0}
    for name in inputs:
        if name in values or name.endswith("token_type_ids"):
            behind = torch.full_like(tokens, values.get(name, token_type), dtype=inputs[name].dtype)
            longer[name] = torch.cat([inputs[name], behind], 1)
    return longer


def with_padding_moved(inputs: Inputs, where: str) -> dict[str, Any]:
    """The inputs with the padding in front of each row moved "after" it, "between" its last tokens, or "everywhere".

    "between" is in front of the last two tokens; "everywhere" is a third each in front, between and after.
    """
    shares = {"front": (3, 0, 0), "between": (0, 3, 0), "behind": (0, 0, 3), "everywhere": (1, 1, 1)}[where]
    rows = []
    for mask in inputs["attention_mask"]:
        padding, real = (mask == 0).nonzero().flatten().tolist(), mask.nonzero().flatten().tolist()
        between, behind = (len(padding) * share // 3 for share in shares[1:])
        front = len(padding) - between - behind
        parts = [padding[:front], real[:-2], padding[front : front + between], real[-2:], padding[front + between :]]
        rows.append([position for part in parts for position in part])
    order, shape = torch.tensor(rows), inputs["input_ids"].shape
    of_tokens = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return dict(inputs) | {name: value.gather(1, order) for name, value in of_tokens.items() if value.shape == shape}


def second_turn(inputs: Inputs, first: Any, question: torch.Tensor) -> dict[str, Any]:
    """The inputs of a turn of text only [B, N] that goes on the cache of the `first` one."""
    length = inputs["input_ids"].shape[1]
    conversation = extended(inputs, torch.cat([first.sequences[:, length:], question], 1))
    return {
        "input_ids": conversation["input_ids"],
        "attention_mask": conversation["attention_mask"],
        "past_key_values": first.past_key_values,
    }


def real_at(inputs: Inputs, length: int, kept: torch.Tensor | None) -> torch.Tensor:
    """Which of the `length` positions that are left of each row are no padding, bool [B, `length`].

    They are those `kept` [B, S'], the last of them where fewer. Without it padding must be in front only, where it is
    the first to go: what is left of a row ends as the row does.
    """
    mask = inputs["attention_mask"].bool()
    if kept is not None and length < mask.shape[1]:
        mask = mask.gather(1, kept)
    elif length < mask.shape[1]:
        assert mask.equal(mask.cummax(1).values), "with padding after the first real token, say what was kept"
    return mask[:, -length:]


def assert_same_logits(
    actual: torch.Tensor,
    expected: torch.Tensor,
    inputs: Inputs,
    run: oracle.Run | None = None,
    tolerance: Mapping[str, float] = TOLERANCE,
) -> None:
    """Equal logits [B, L, vocabulary] wherever a row has no padding, L being S or S'.

    `run` tells what was kept, where padding is not in front only.
    """
    assert actual.shape == expected.shape
    kept = run.kept[-1] if run is not None and run.kept else None
    real = real_at(inputs, expected.shape[1], kept)
    assert_close(actual[real], expected[real], **tolerance)


def cache_of(output: Any) -> Any:
    """The cache, which InstructBLIP-Video leaves in its language model's outputs."""
    return getattr(output, "language_model_outputs", output).past_key_values


def assert_same_cache(
    actual: Any, expected: Any, inputs: Inputs, new: int | None = None, run: oracle.Run | None = None
) -> None:
    """Equal lengths, and equal keys and values of every layer wherever a row has no padding, and equal states.

    What follows the prompt, `new` positions (read from the cache unless told), is no padding. `run` tells what was
    kept, where padding is not in front only.
    """
    assert oracle.cache_lengths(actual) == oracle.cache_lengths(expected)
    length = inputs["attention_mask"].shape[1]
    new = max(expected.get_seq_length() - length, 0) if new is None else new
    pairs = zip(oracle.cache_tensors(actual), oracle.cache_tensors(expected), strict=True)
    for layer, (ours, theirs) in enumerate(pairs):
        assert ours.keys() == theirs.keys()
        kept = None if run is None else run.kept_in(layer)
        for name, their in theirs.items():
            our, message = ours[name], partial("{1} of layer {0}: {2}".format, layer, name)
            if "states" not in name:
                real = real_with_new(inputs, their.shape[-2], kept, new)
                our, their = (tensor.movedim(-2, 1)[real] for tensor in (our, their))
            assert_close(our, their, **TOLERANCE, msg=message)


def real_with_new(inputs: Inputs, length: int, kept: torch.Tensor | None, new: int) -> torch.Tensor:
    """`real_at` for a layer that holds `length` positions, the last `new` of which follow the prompt."""
    held = max(length - new, 0)
    real = real_at(inputs, held, kept) if held else torch.ones(len(inputs["attention_mask"]), 0, dtype=torch.bool)
    return torch.cat([real, torch.ones(len(real), length - held, dtype=torch.bool)], 1)


def assert_same_generation(actual: Any, expected: Any, inputs: Inputs, run: oracle.Run | None = None) -> None:
    """Equal tokens, equal logits after each of them, equal caches at the end."""
    assert actual.sequences.tolist() == expected.sequences.tolist()
    assert_close(torch.stack(actual.logits), torch.stack(expected.logits), **TOLERANCE)
    new = expected.sequences.shape[1] - inputs["input_ids"].shape[1] - 1
    assert_same_cache(actual.past_key_values, expected.past_key_values, inputs, new, run)


def the_pruned_graph(reports: Sequence[Any]) -> Any:
    """The report of the one graph that was pruned: comparing models that nobody pruned proves nothing."""
    pruned = [report for report in reports if report.pruned]
    assert len(pruned) == 1, [(report.pruned, report.reason) for report in reports]
    return pruned[0]


def assert_reported(report: Any, inputs: Inputs, visual: torch.Tensor, run: oracle.Run, **facts: int) -> None:
    """The report tells the lengths (a symbolic one as text), the facts named, and the oracle's positions."""
    length, visual_tokens = inputs["input_ids"].shape[1], int(visual.sum()) // len(visual)
    pruned_length = run.kept[0].shape[1]
    facts |= {
        "sequence_length": length,
        "pruned_length": pruned_length,
        "visual_tokens": visual_tokens,
        "kept_tokens": visual_tokens - length + pruned_length,
    }
    for name, expected in facts.items():
        value = getattr(report, name)
        assert isinstance(value, str) or value == expected, (name, value, expected)
    assert report.kept.tolist() == run.kept[0].tolist()


def _holders(model: nn.Module) -> Iterator[Any]:
    """All that may tell a sliding window: modules, and their configs."""
    for module in model.modules():
        config = getattr(module, "config", None)
        yield from (module, config, getattr(config, "text_config", None))


def has_window(model: nn.Module) -> bool:
    """Whether a model has a sliding window."""
    return any(isinstance(getattr(holder, size, None), int) for holder in _holders(model) for size in _WINDOWS)


def with_window(model: nn.Module, window: int | None) -> nn.Module:
    """A copy whose sliding windows are of `window` tokens; those of the architecture for None."""
    model = deepcopy(model)
    for holder, size in product(_holders(model), _WINDOWS):
        if window is not None and isinstance(getattr(holder, size, None), int):
            setattr(holder, size, window)
    return model

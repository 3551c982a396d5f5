"""Programs of tiny models, inputs for them, and what the oracle says."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import sharp_compile
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES
from tests.support import generate

FAMILIES = ["llava_onevision", "qwen2_5_vl", "internvl", "video_llama_3", "gemma3", "smolvlm"]
RETENTION = 0.25
NEW = 4  # tokens that are generated
PAD = (0, 3)  # of two rows
# ShaRP's keys before their rotation are no output of a projection in Gemma 3: the oracle has no definition for it.
SELECTORS = {"gemma3": "fastv"}


@cache
def model_of(name: str) -> Any:
    return ALL_ARCHITECTURES[name].build()


@cache
def programs(name: str, selector: str | None = None, pad: tuple[int, ...] = PAD) -> tuple[Any, Any]:
    """The prefill and the step, exported with an example that is padded so."""
    model = model_of(name)
    options = {"retention": RETENTION, "selector": selector or SELECTORS.get(name, "sharp")}
    prefill = sharp_compile.export(model, **options, **inputs_of(name, 12, pad))
    return prefill, sharp_compile.export_decode(model, prefill)


def inputs_of(name: str, text: int, pad: tuple[int, ...] = PAD) -> dict[str, torch.Tensor]:
    """Rows with so much padding in front, with the positions that some models make in Python."""
    model = model_of(name)
    inputs = ALL_ARCHITECTURES[name].inputs(model, text=text, batch=len(pad), pad=pad)
    if hasattr(model.model, "get_rope_index"):
        known = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
        inputs["position_ids"] = model.model.get_rope_index(**known)[0]
    return inputs


def by_hand(name: str, inputs: dict[str, torch.Tensor], selector: str | None = None) -> tuple[Any, Any, Any]:
    """What the oracle generates, the output of its prefill, and its run."""
    model, architecture = model_of(name), ALL_ARCHITECTURES[name]
    frames = architecture.tokens_per_block if architecture.shows_frames else None
    case = {"retention": RETENTION, "selector": selector or SELECTORS.get(name, "sharp"), "tokens_per_frame": frames}
    prompt = {name: value for name, value in inputs.items() if name != "position_ids"}
    with oracle.prune(model, **case):
        generated = generate(model, prompt, max_new_tokens=NEW)
    with oracle.prune(model, **case) as run, torch.no_grad():
        output = model(**prompt)
    return generated, output, run


def answers(prefill: Any, step: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [B, NEW] that a greedy loop over the programs gives, and the logits [NEW, B, vocabulary] of each."""
    state, tokens, logits = dict(prefill(**inputs)), [], []
    for number in range(NEW):
        logits.append(state.pop("logits")[:, -1])
        # Those that tiny models never generate: see `Architecture.build`.
        allowed = logits[-1].clone()
        allowed[:, [0, 190, 191, 192, 193]] = -torch.inf
        tokens.append(allowed.argmax(-1, keepdim=True))
        if number + 1 < NEW:
            state = dict(step(input_ids=tokens[-1], **state))
    return torch.cat(tokens, 1), torch.stack(logits)

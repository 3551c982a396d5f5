"""Tiny models of four families, pruned on this machine, against the stock eager model that is pruned by hand there.

Each has its own way of bringing a video into the decoder: features in place of placeholders (LLaVA-OneVision),
positions on three axes (Qwen2.5-VL), features that are added again after layers (Qwen3-VL), frames between text
(InternVL). A batch has two rows, one of which is padded. One of them also says that it was loaded with FlashAttention.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

import sharp_compile
from sharp_compile.short_repr import brief

from .by_hand import at, pruned_by_hand
from .rows import Verdict

_LAYER, _RETENTION, _NEW_TOKENS = 1, 0.25, 4
_IMAGE, _VIDEO, _START, _END = 190, 191, 192, 193
_PADDING = 3
_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}
"""Of the largest logit. On a GPU kernels of many kinds add in other orders than eager mode does; what a wrong constant
in a kernel or a wrong position makes is far more."""

_TEXT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_PATCHES = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
# What configs call the parameters of rotary embeddings, and called them before transformers 5.
_ROPE = "rope_parameters" if Version(transformers.__version__) >= Version("5") else "rope_scaling"


@dataclass(frozen=True)
class Tiny:
    """A model, what stands for the video in the ids of a row, and what the vision tower gets for two rows."""

    config: Any
    video: list[int]
    pixels: dict[str, Tensor]


def check(device: str, part: int = 0, parts: int = 1) -> Iterator[Verdict]:
    """Yield two verdicts for each family: ``forward`` with FastV's rule, and ``generate`` with the default one.

    For one of them there is a third: the language model says that it was loaded with FlashAttention.

    Of the families it takes every one of ``parts``, from number ``part`` on.
    """
    torch.backends.cudnn.allow_tf32 = False  # the convolutions of towers would be rounded
    for name, build in list(FAMILIES.items())[part::parts]:
        for called, call in (_CALLS | _FURTHER_CALLS.get(name, {})).items():
            start = time.perf_counter()
            torch._dynamo.reset()
            sharp_compile.reset()
            try:
                with torch.no_grad():
                    right, told = call(*_model_and_inputs(build(), device), device)
            except Exception as error:  # whatever a compiler or a driver raises
                right, told = False, f"{type(error).__name__}: {brief(error)}"
            yield Verdict("families", f"{name}, {called}", right, told, time.perf_counter() - start)


def _forward(model: Any, inputs: dict[str, Tensor], device: str) -> tuple[bool, str]:
    """Compare one call: which tokens are kept, and the logits at their positions."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    attentions = eager(**inputs, output_attentions=True).attentions
    fast = _compiled(model, device, selector="fastv")
    actual = fast(**inputs).logits
    layer, kept, _ = _cut()
    wrong = _wrongly_chosen(attentions[layer].mean(1)[:, -1], _is_visual(inputs), inputs["attention_mask"].bool(), kept)
    return (False, wrong) if wrong else _same_at_kept(actual, model, inputs, device)


def _same_at_kept(actual: Tensor, model: Any, inputs: dict[str, Tensor], device: str) -> tuple[bool, str]:
    """Compare the logits of a pruned call with those of the model pruned by hand."""
    layer, kept, _ = _cut()
    visual, real = _is_visual(inputs), at(inputs["attention_mask"].bool(), 1, kept)
    with pruned_by_hand(model.model.language_model.layers[layer + 1 :], kept, visual.shape[1]):
        expected = model(**inputs).logits
    return _same(actual[real], at(expected, 1, kept)[real], device, kept, visual)


def _switched(model: Any, inputs: dict[str, Tensor], device: str) -> tuple[bool, str]:
    """Compare one call of a model that was loaded with FlashAttention: it is switched to SDPA, and says so."""
    fast = copy.deepcopy(model)
    config = fast.get_decoder().config
    config._attn_implementation = "flash_attention_2"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sharp_compile.compile(fast, **_options(device))
    if config._attn_implementation != "sdpa":
        return False, f"the language model stays with {config._attn_implementation}"
    if not any("is switched to SDPA" in str(each.message) for each in caught):
        return False, "no warning says that it was switched to SDPA"
    right, told = _same_at_kept(fast(**inputs).logits, model, inputs, device)
    return right, f"switched to SDPA; {told}"


def _generate(model: Any, inputs: dict[str, Tensor], device: str) -> tuple[bool, str]:
    """Compare a few generated tokens, and the logits of each."""
    how = {"max_new_tokens": _NEW_TOKENS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    actual = _compiled(model, device).generate(**inputs, **how)
    layer, kept, scores = _cut()
    with pruned_by_hand(model.model.language_model.layers[layer + 1 :], kept, inputs["input_ids"].shape[1]):
        expected = model.generate(**inputs, **how)
    if not actual.sequences.equal(expected.sequences):
        return False, "other tokens than the eager model's"
    if device != "cpu":
        off = _off(scores.cpu(), _scores_on_a_cpu(model, inputs))
        if not off <= _TOLERANCE[device]:
            return False, f"scores off by {off:.0e} of those that a CPU computes"
    return _same(torch.stack(actual.logits), torch.stack(expected.logits), device, kept, _is_visual(inputs))


def _scores_on_a_cpu(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the scores of the same call on a CPU, where plain PyTorch computes them; the model stays there."""
    sharp_compile.reset()
    _compiled(model.to("cpu"), "cpu")(**{name: tensor.cpu() for name, tensor in inputs.items()})
    return _cut()[2]


def _compiled(model: Any, device: str, **options: Any) -> Any:
    """Return the pruned model."""
    fast = copy.deepcopy(model)
    fast.compile(backend="sharp", options=_options(device) | options)
    return fast


def _options(device: str) -> dict[str, Any]:
    # A CPU takes longer to compile tiny models than for all else, and no kernel of ours is in what it compiles.
    return {"retention": _RETENTION, "layer": _LAYER, **({"inner": "eager"} if device == "cpu" else {})}


def _cut() -> tuple[int, Tensor, Tensor]:
    """Return the layer of the one cut, the positions kept ``[B, N]``, and the scores ``[B, S]``.

    The layer is a later one than was asked for where features are added again until then.
    """
    pruned = [report for report in sharp_compile.reports() if report.pruned]
    if len(pruned) != 1:
        reasons = {report.reason for report in sharp_compile.reports() if not report.pruned}
        raise RuntimeError(f"{len(pruned)} graphs were pruned instead of one: {'; '.join(sorted(reasons))}")
    (report,) = pruned
    assert report.layer is not None and report.kept is not None and report.scores is not None
    return report.layer, report.kept, report.scores


def _is_visual(inputs: dict[str, Tensor]) -> Tensor:
    return (inputs["input_ids"] == _VIDEO) | (inputs["input_ids"] == _IMAGE)


def _wrongly_chosen(scores: Tensor, visual: Tensor, real: Tensor, kept: Tensor) -> str | None:
    """Say what is wrong with the positions kept of rows of scores ``[B, S]``, if anything: equal ones may be either.

    All rows come out as long as one without padding; one with padding gives that up first.
    """
    length = int((~visual[0]).sum()) + math.ceil(_RETENTION * int(visual[0].sum()))
    if kept.shape[1] != length:
        return f"{kept.shape[1]} tokens are kept instead of {length}"
    for row, positions in enumerate(kept):
        chosen = torch.zeros_like(visual[row]).index_fill(0, positions, True)
        if not chosen[real[row] & ~visual[row]].all():
            return f"row {row}: text was dropped"
        if chosen[~real[row]].any():
            return f"row {row}: padding was kept"
        least, most = scores[row][chosen & visual[row]].min(), scores[row][~chosen & visual[row]].max()
        if most > least * 1.001:
            return f"row {row}: a token with a score of {most:.3g} was dropped, one with {least:.3g} was kept"
    return None


def _same(actual: Tensor, expected: Tensor, device: str, kept: Tensor, visual: Tensor) -> tuple[bool, str]:
    off = _off(actual, expected)
    told = f"{visual.shape[1]} -> {kept.shape[1]} tokens, logits off by {off:.0e} of the largest"
    return off <= _TOLERANCE[device], told


def _off(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest number; infinite where only one of two is a number."""
    nowhere = actual.isnan() & expected.isnan()
    difference = (actual - expected).masked_fill(nowhere, 0).abs().max()
    return (difference / expected.nan_to_num().abs().max()).nan_to_num(torch.inf, torch.inf).item()


def _model_and_inputs(tiny: Tiny, device: str) -> tuple[Any, dict[str, Tensor]]:
    model = transformers.AutoModelForImageTextToText.from_config(tiny.config, attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(0)
    _draw(model, generator)
    model.generation_config.suppress_tokens = [0, _IMAGE, _VIDEO, _START, _END]
    model.generation_config.pad_token_id = 0
    words = torch.randint(10, 180, (2, 12), generator=generator)
    ids = torch.stack([torch.cat([each[:4], torch.tensor(tiny.video), each[4:]]) for each in words])
    ids[1] = ids[1].roll(_PADDING)  # its last words would come in front
    ids[1, :_PADDING] = 0
    mask = torch.ones_like(ids)
    mask[1, :_PADDING] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, **tiny.pixels}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:  # others see from the ids what is visual
        inputs["mm_token_type_ids"] = 2 * (ids == _VIDEO).int()
    model, inputs = model.to(device), {name: tensor.to(device) for name, tensor in inputs.items()}
    model(**inputs)  # what a model does once, at its first call, breaks graphs
    return model, inputs


def _draw(model: Any, generator: torch.Generator) -> None:
    """Draw weights so that activations keep their size, and attention is neither uniform nor all on one token."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.dim() < 2:
                parameter.copy_(0.1 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(gain * noise / math.sqrt(parameter[0].numel()))


def _tower(**sizes: Any) -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 64, **sizes}


def _random(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(1))


def _llava_onevision() -> Tiny:
    """16 frames of 4 tokens, and one for their end."""
    square = _tower(num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, vision_use_head=False)
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_TEXT},
        vision_config={"model_type": "siglip_vision_model", **square},
        image_token_index=_IMAGE,
        video_token_index=_VIDEO,
        image_grid_pinpoints=[[16, 16]],
    )
    return Tiny(config, [_VIDEO] * 65, {"pixel_values_videos": _random(2, 16, 3, 16, 16)})


def _of_patches(config: type, rope: dict[str, Any], tower: dict[str, Any], video: list[int], blocks: int) -> Tiny:
    """A Qwen-VL: each block of two frames is 4 x 8 patches, of which 2 x 2 become a token."""
    made = config(
        text_config={
            **_TEXT,
            _ROPE: {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3], **rope},
        },
        vision_config={**_PATCHES, **_tower(out_hidden_size=_TEXT["hidden_size"]), **tower},
        image_token_id=_IMAGE,
        video_token_id=_VIDEO,
        vision_start_token_id=_START,
        vision_end_token_id=_END,
    )
    pixels = {
        "pixel_values_videos": _random(2 * blocks * 32, 3 * 2 * 4 * 4),
        "video_grid_thw": torch.tensor([[blocks, 4, 8]] * 2),
    }
    return Tiny(made, video, pixels)


def _qwen2_5_vl() -> Tiny:
    """8 blocks of 8 tokens."""
    windows = {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return _of_patches(transformers.Qwen2_5_VLConfig, {}, windows, [_VIDEO] * 64, 8)


def _qwen3_vl() -> Tiny:
    """8 blocks of 8 tokens with a timestamp, a token of text, between them."""
    deepstack = {"num_position_embeddings": 16, "deepstack_visual_indexes": (0, 1, 2)}
    video = ([_VIDEO] * 8 + [20]) * 8
    return _of_patches(transformers.Qwen3VLConfig, {"mrope_interleaved": True}, deepstack, video[:-1], 8)


def _internvl() -> Tiny:
    """16 frames of 4 tokens, with a token of text between them."""
    square = _tower(num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **_TEXT},
        vision_config=square,
        image_token_id=_IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return Tiny(config, (([_IMAGE] * 4 + [20]) * 16)[:-1], {"pixel_values": _random(32, 3, 16, 16)})


FAMILIES: dict[str, Callable[[], Tiny]] = {
    "LLaVA-OneVision": _llava_onevision,
    "Qwen2.5-VL": _qwen2_5_vl,
    "Qwen3-VL": _qwen3_vl,
    "InternVL": _internvl,
}
_CALLS = {"forward": _forward, "generate": _generate}
_FURTHER_CALLS = {"LLaVA-OneVision": {"loaded with FlashAttention": _switched}}

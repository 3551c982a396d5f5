"""The demo's models, and what a model gets to see: the clip and a question about it.

The two models that are built here have the architecture of the published ones, layer for layer of the same
kind, and their real image and video processors. Their weights are random, so that nothing needs to be
downloaded: the answer means nothing, which tokens are kept means little, and how long it takes is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.video_utils import VideoMetadata

from sharp_compile.short_repr import brief
from sharp_compile.tools import checkpoint
from sharp_compile.tools.demo import DemoError
from sharp_compile.tools.demo.video import Clip
from sharp_compile.tools.html_report.cells import Grid, grid_of

QUESTIONS = ("What moves across the picture, and where does it go?", "color of disc ?")
"""What is asked unless the user asks: the first that a model's tokenizer can read.

The second is in the vocabulary of the small models that come with the package."""

DECODER = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
"""The size of both decoders: half a second of work on two idle cores for each of them."""

VISION = {"hidden_size": 64, "intermediate_size": 256}
VISION_LAYERS, VISION_HEADS = 2, 1
"""The size of both vision towers: small, as pruning leaves them as they are."""

_IMAGE, _VIDEO, _START, _END = "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"
_VISION_START, _VISION_END = "<|vision_start|>", "<|vision_end|>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] != 'text' %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


Loaded = tuple[Any, Any]
"""A model and its processor. (The types that transformers declares for them don't know their own methods.)"""


@dataclass(frozen=True)
class Source:
    """A model that can be had: ``load`` builds or reads it, and its processor, which takes a while."""

    name: str
    load: Callable[[], Loaded]


@dataclass(frozen=True)
class Case:
    """A model with its inputs: one prompt of S tokens, V of which are visual.

    ``visual`` has the V positions of the visual tokens, ascending; ``grid`` says what they stand for, where that
    is known. ``processor`` made the inputs, and reads answers.
    """

    name: str
    model: Any
    inputs: dict[str, Any]
    visual: torch.Tensor
    grid: Grid | None
    question: str
    processor: Any

    @property
    def sequence_length(self) -> int:
        """S, the length of the prompt in tokens."""
        return int(self.inputs["input_ids"].shape[1])


def built_in() -> Iterator[Source]:
    """Return the two models that need no download."""
    yield Source("LLaVA-OneVision", _llava_onevision)
    yield Source("Qwen2.5-VL", _qwen2_5_vl)


def local(path: Path) -> Source:
    """Return the checkpoint in a folder on this machine; nothing is downloaded, no code in it is run.

    Raises:
        DemoError: There is no such folder. Likewise when it is loaded and is no checkpoint of such a model.
    """
    if not path.is_dir():
        raise DemoError(f"{path}: there is no such folder")

    def load() -> Loaded:
        try:
            return checkpoint.load(str(path), _dtype(), local=True)
        except checkpoint.CheckpointError as error:
            raise DemoError(f"{path}: no checkpoint of a video model ({error})") from error

    return Source(path.name or str(path), load)


def prepare(source: Source, clip: Clip, question: str | None = None) -> Case:
    """Load a model and make its inputs from the clip and a question, on the accelerator if there is one.

    Args:
        source: the model.
        clip: what it gets to see.
        question: what it is asked; None for one of ``QUESTIONS``.

    Raises:
        DemoError: The checkpoint can't be loaded, or can't be asked about a video.
    """
    model, processor = source.load()
    reason: Exception | None = None
    for asked in (question,) if question is not None else QUESTIONS:
        try:
            inputs = _inputs(processor, clip, asked)
            break
        except Exception as error:  # whatever a template or a tokenizer raises that is not this model's
            reason = reason or error
    else:
        raise DemoError(f"{source.name}: can't be asked about a video ({brief(reason)})") from reason
    known, largest = model.get_input_embeddings().num_embeddings, int(inputs["input_ids"].max())
    if largest >= known:
        raise DemoError(f"{source.name}: its tokenizer is another model's: token {largest}, but there are {known}")
    # Some models have one placeholder for the frames of videos and for images.
    ids = [getattr(model.config, name, None) for name in ("video_token_id", "image_token_id")]
    placeholders = torch.tensor([number for number in ids if number is not None], dtype=torch.long)
    visual = torch.isin(inputs["input_ids"][0], placeholders).nonzero()[:, 0]
    if len(visual) == 0:
        raise DemoError(f"{source.name}: the prompt for {len(clip.frames)} frames has no visual tokens")
    grid = grid_of(inputs, len(visual))
    inputs = dict(inputs.to(_device(), _dtype()))
    return Case(source.name, model.to(_device()).eval(), inputs, visual, grid, asked, processor)


def _inputs(processor: Any, clip: Clip, question: str) -> Any:
    _, height, width, _ = clip.frames.shape
    metadata = VideoMetadata(
        total_num_frames=clip.total,
        fps=clip.fps,
        width=width,
        height=height,
        duration=clip.total / clip.fps,
        frames_indices=list(clip.indices),
    )
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return processor(
        text=[prompt], videos=[clip.frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )


def _device() -> torch.device:
    """Return where the models run."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _dtype() -> torch.dtype:
    """Return what the models compute in: what is fast and usual where they run."""
    return torch.float32 if _device().type == "cpu" else torch.bfloat16


def _tokenizer() -> Any:
    """Return a tokenizer with one token for each byte and one for each of the marks that the models need."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_IMAGE, _VIDEO, _START, _END, _VISION_START, _VISION_END])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_END)


def _text_config(tokenizer: Any) -> dict[str, Any]:
    """Return the decoder's configuration."""
    end = tokenizer.eos_token_id
    return {
        **DECODER,
        "max_position_embeddings": 32768,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": None,
    }


def _llava_onevision() -> Loaded:
    """Return a small LLaVA-OneVision: 14 x 14 visual tokens a frame, as the published ones have."""
    tokenizer = _tokenizer()
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text_config(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION,
            "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": VISION_HEADS,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(_VIDEO),
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=(384 // 14) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_CHAT_TEMPLATE,
        image_token=_IMAGE,
        video_token=_VIDEO,
    )
    return _random(config), processor


def _qwen2_5_vl() -> Loaded:
    """Return a small Qwen2.5-VL: some 430 visual tokens for each two frames, whatever their shape."""
    tokenizer = _tokenizer()
    # The share of each rotary axis (time, height, width) is the published one: 2, 3, 3 of 8.
    eighth = DECODER["hidden_size"] // DECODER["num_attention_heads"] // 16
    config = Qwen2_5_VLConfig(
        text_config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth],
            },
            **_text_config(tokenizer),
        },
        vision_config={
            **VISION,
            "depth": VISION_LAYERS,
            "num_heads": VISION_HEADS,
            "out_hidden_size": DECODER["hidden_size"],
            "fullatt_block_indexes": [VISION_LAYERS - 1],
        },
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids(_VIDEO),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(_VISION_START),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(_VISION_END),
    )
    # One token stands for 28 x 28 pixels; the processor scales each frame until it has as many as this.
    size = {"shortest_edge": 410 * 28 * 28, "longest_edge": 450 * 28 * 28}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(),
        tokenizer,
        Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=True),
        chat_template=_CHAT_TEMPLATE,
    )
    return _random(config), processor


def _random(config: Any) -> Any:
    """Return a model with random weights, the same ones each time."""
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=_dtype())

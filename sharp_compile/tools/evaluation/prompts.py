"""Frames and questions as a model takes them, equal to what its processor in transformers makes of them.

That processor needs torchvision; what it does for these videos is said in two functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .questions import Question
from .scenes import FRAMES, GRID

VISUAL_TOKENS = FRAMES * GRID * GRID + 1
"""Of a video: one for each cell of each frame, and one after the last."""


def pixel_values(frames: np.ndarray) -> torch.Tensor:
    """Return frames ``[..., height, width, 3]`` of uint8 as float32 ``[..., 3, height, width]`` between -1 and 1."""
    return torch.from_numpy(frames).movedim(-1, -3) / 127.5 - 1


def prompt_ids(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> torch.Tensor:
    """Prompts ``<s> <video> words of the question``, the placeholder once for each visual token: ``[B, S]`` int64."""
    prompts = [" ".join(["<s>", *["<video>"] * VISUAL_TOKENS, *question.words]) for question in questions]
    return tokenizer(prompts, return_tensors="pt").input_ids

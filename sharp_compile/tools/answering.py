"""What a model answers to one prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sharp_compile.integrations.transformers.prompt import without_prompt


def greedy_answer(model: Any, inputs: Mapping[str, Any], decode: Callable[..., str], max_new_tokens: int) -> str:
    """Return the answer that a model finds most likely word by word, without the prompt.

    Args:
        model: one of transformers, compiled or not.
        inputs: those of one row, ``input_ids`` ``[1, L]`` among them.
        decode: gives the text of tokens ``[N]``, as a tokenizer or a processor does.
        max_new_tokens: how long the answer may get.
    """
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)[0]
    return decode(without_prompt(tokens, inputs["input_ids"][0]), skip_special_tokens=True).strip()

"""Inputs are those that the processor of transformers makes."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from sharp_compile.tools.evaluation import MODELS
from sharp_compile.tools.evaluation.dataset import hold_out
from sharp_compile.tools.evaluation.prompts import VISUAL_TOKENS, pixel_values, prompt_ids
from sharp_compile.tools.evaluation.questions import VOCABULARY


def test_all_words_are_known():
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "seed-1")
    ids = prompt_ids(tokenizer, [SimpleNamespace(words=("color", "of", "ring", "?"))])
    assert ids.shape == (1, 1 + VISUAL_TOKENS + 4)
    assert tokenizer.decode(ids[0, -4:]) == "color of ring ?"
    assert tokenizer.convert_tokens_to_ids(list(VOCABULARY)) == list(range(len(VOCABULARY)))


@pytest.mark.torchvision
def test_inputs_are_those_of_the_processor():
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(MODELS / "seed-1")
    exam = hold_out("clutter", 2, 0)
    for frames, question in zip(exam.frames, exam.questions, strict=True):
        content = [{"type": "video"}, {"type": "text", "text": " ".join(question.words)}]
        text = processor.apply_chat_template([{"role": "user", "content": content}])
        inputs = processor(text=text, videos=[frames], return_tensors="pt")
        assert inputs.input_ids.equal(prompt_ids(processor.tokenizer, [question]))
        torch.testing.assert_close(inputs.pixel_values_videos[0], pixel_values(frames))

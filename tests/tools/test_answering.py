"""An answer is what comes after the prompt, whether a model gives the prompt back or not."""

import pytest
import torch

from sharp_compile.tools.answering import greedy_answer


class Model:
    def __init__(self, tokens):
        self.tokens = tokens

    def generate(self, input_ids, **settings):
        assert settings == {"max_new_tokens": 2, "do_sample": False, "num_beams": 1}
        return torch.tensor([self.tokens])


@pytest.mark.parametrize("tokens", [[7, 8, 9, 1, 2], [1, 2]], ids=["with the prompt", "without it"])
def test_the_prompt_is_no_part_of_it(tokens):
    def decode(tokens, skip_special_tokens):
        return f" {tokens.tolist()} {skip_special_tokens} "

    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    assert greedy_answer(Model(tokens), inputs, decode, 2) == "[1, 2] True"

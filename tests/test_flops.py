"""What the counter counts."""

import torch

from sharp_compile.flops import flop_counter


def test_attention_is_counted_on_the_cpu_too():
    query = torch.zeros(1, 4, 10, 8)
    key = torch.zeros(1, 4, 20, 8)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() == 2 * (2 * 4 * 10 * 20 * 8)

"""DeepStack's addition of features, in a form that Dynamo traces in one graph."""

import torch
from torch.testing import assert_close

from sharp_compile.integrations.transformers.deepstack import make_traceable


class Adds:
    def _deepstack_process(self, hidden_states, visual_pos_masks, visual_embeds):
        hidden_states = hidden_states.clone()
        hidden_states[visual_pos_masks, :] = hidden_states[visual_pos_masks, :] + visual_embeds
        return hidden_states


class Multiplies:
    def _deepstack_process(self, hidden_states, visual_pos_masks, visual_embeds):
        hidden_states = hidden_states.clone()
        hidden_states[visual_pos_masks, :] = hidden_states[visual_pos_masks, :] * visual_embeds
        return hidden_states


def test_one_graph_and_the_same_sum():
    hidden, mask = torch.randn(2, 5, 4), torch.rand(2, 5) > 0.5
    features = torch.randn(int(mask.sum()), 4)
    expected = Adds()._deepstack_process(hidden, mask, features)
    make_traceable(Adds)
    make_traceable(Adds)
    compiled = torch.compile(lambda *args: Adds()._deepstack_process(*args), backend="eager", fullgraph=True)
    assert_close(compiled(hidden, mask, features), expected)
    assert_close(Adds()._deepstack_process(hidden, mask, features), expected)


def test_a_method_that_does_something_else_is_left():
    method = Multiplies._deepstack_process
    make_traceable(Multiplies)
    assert Multiplies._deepstack_process is method
    make_traceable(torch.nn.Linear)

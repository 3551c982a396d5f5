"""Functions that mix tokens in their order are one node of a graph."""

import sys
from types import ModuleType

import torch
from sharp_compile.passes.token_dim.sequence_functions import SEQUENCE_FUNCTIONS
from torch.testing import assert_close

from sharp_compile.integrations.transformers.sequence import keep_whole


def causal_conv1d_fn(hidden_states, weight):
    length = hidden_states.shape[-1]
    padded = torch.nn.functional.conv1d(hidden_states, weight, padding=weight.shape[-1] - 1, groups=weight.shape[0])
    return padded[:, :, :length]


def another(hidden_states):
    return hidden_states.flip(-1).exp()


def test_only_known_functions_are_kept_whole():
    keep_whole(sys.modules[__name__])
    assert causal_conv1d_fn in SEQUENCE_FUNCTIONS
    assert another not in SEQUENCE_FUNCTIONS
    graphs = []

    def backend(module, _):
        graphs.append([node.target for node in module.graph.nodes if node.op == "call_function"])
        return module.forward

    hidden, weight = torch.randn(1, 3, 8), torch.randn(3, 1, 4)
    actual = torch.compile(lambda x: another(causal_conv1d_fn(x, weight)), backend=backend)(hidden)
    assert_close(actual, another(causal_conv1d_fn(hidden, weight)))
    assert causal_conv1d_fn in graphs[0]
    assert another not in graphs[0]


def test_a_module_without_any():
    keep_whole(ModuleType("empty"))

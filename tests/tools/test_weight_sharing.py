"""Models that share their weights."""

import torch

from sharp_compile.tools.weight_sharing import weight_sharing_copy


def test_a_twin_shares_the_weights_and_nothing_else():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    other = weight_sharing_copy(model)
    assert other is not model and other[0] is not model[0]
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    other.compile(backend="eager")
    assert model._compiled_call_impl is None

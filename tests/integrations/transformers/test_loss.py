"""The loss of a pruned model: the targets of the whole sequence, at the kept positions."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from tests import oracle
from tests.architectures import ARCHITECTURES, shared_model, visual_mask
from tests.support import forward


@pytest.mark.parametrize("arguments", [{}, {"batch": 2, "pad": [0, 3]}])
def test_labels_of_the_whole_sequence(arguments):
    name = "llava_onevision"
    model = shared_model(name, layers=4)
    inputs = ARCHITECTURES[name].inputs(model, **arguments)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | visual_mask(model, inputs), -100)
    options = {"inner": "aot_eager", "retention": 0.25, "selector": "uniform"}
    output = torch.compile(deepcopy(model), backend="sharp", options=options)(**inputs, labels=labels)
    with oracle.prune(model, retention=0.25, layer=1, selector="uniform") as run:
        logits = forward(model, inputs).logits
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).gather(1, run.kept[0])
    assert_close(output.loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    output.loss.backward()


def test_logits_that_no_graph_returned_go_to_the_stock_loss():
    from sharp_compile.integrations import transformers

    transformers.install()
    loss = shared_model("llava_onevision", layers=4).loss_function
    with pytest.raises(ValueError, match="batch_size"):
        loss(torch.zeros(1, 6, 10), torch.zeros(1, 8, dtype=torch.long), vocab_size=10)

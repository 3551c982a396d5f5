"""Tiny random video LLMs, built from their config classes: no checkpoint, no processor, no network.

`ARCHITECTURES` maps a name to an `Architecture`, which builds a model (`build`) and inputs for it
(`inputs`). A model has six decoder layers, a vocabulary of 200 and a vision tower of one or two layers; its
weights are seeded and large enough that the logits are spread out and really depend on the visual tokens
(`tests/test_oracle.py` checks it), so that a test that compares two such models proves something.
"""

from functools import cache

from torch import nn

from tests.architectures.base import Architecture, text_only, visual_mask
from tests.architectures.internvl import INTERNVL
from tests.architectures.llava_onevision import LLAVA_ONEVISION
from tests.architectures.qwen2_vl import QWEN2_5_VL, QWEN2_VL
from tests.architectures.video_llama_3 import VIDEO_LLAMA_3

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (LLAVA_ONEVISION, QWEN2_VL, QWEN2_5_VL, INTERNVL, VIDEO_LLAMA_3)
}


@cache
def shared_model(name: str, **overrides: int | str) -> nn.Module:
    """The model of these arguments, one a process: for eager calls, and to be copied before compiling."""
    return ARCHITECTURES[name].build(**overrides)


__all__ = ["ARCHITECTURES", "Architecture", "shared_model", "text_only", "visual_mask"]

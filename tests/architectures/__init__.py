"""Tiny random video LLMs, built from their config classes: no checkpoint, no processor, no network.

`ALL_ARCHITECTURES` maps a name to an `Architecture`, which builds a model (`build`) and inputs for it
(`inputs`). A model has six decoder layers, a vocabulary of 200 and a vision tower of one or two layers; its
weights are seeded and large enough that the logits are spread out and really depend on the visual tokens
(`tests/test_oracle.py` checks it), so that a test that compares two such models proves something.
"""

from functools import cache

import pytest
import transformers
from torch import nn

from tests.architectures.base import Architecture, text_only, visual_mask
from tests.architectures.captions import BLIP2, INSTRUCTBLIP, KOSMOS2, KOSMOS2_5
from tests.architectures.codebooks import APERTUS1P5, CHAMELEON, EMU3
from tests.architectures.further import (
    DEEPSEEK_OCR2,
    GEMMA3N,
    GEMMA4_UNIFIED,
    GRANITE4_VISION,
    LLAMA4,
    MISTRAL_LARGE4,
    PHI4_MULTIMODAL,
    STEP3P7,
)
from tests.architectures.gemma import GEMMA3, GEMMA4
from tests.architectures.glm5_next import GLM5_NEXT
from tests.architectures.grid import (
    COHERE_COMPASS,
    COSMOS3_EDGE,
    DOTS3_NOTE,
    ERNIE4_5_VL,
    EXAONE4_5,
    GLM4V,
    GLM46V,
    HYPERCLOVAX,
    KIMI_K25,
    LFM3_VL,
    MINIMAX_M3_VL,
    MUSE_GLIMMER,
    MUSE_SPARK,
    QWEN2_5_OMNI,
    QWEN3_5,
    QWEN3_VL,
    QWEN3_VL_MOE,
)
from tests.architectures.idefics3 import IDEFICS3, SMOLVLM
from tests.architectures.images import AYA_VISION, DEEPSEEK_VL, GOT_OCR2, IDEFICS2, LFM2_VL, QIANFAN_OCR, VIP_LLAVA
from tests.architectures.inkling2 import INKLING2
from tests.architectures.instructblipvideo import INSTRUCTBLIPVIDEO
from tests.architectures.internvl import INTERNVL
from tests.architectures.llava import ARIA, LLAVA, LLAVA_NEXT, LLAVA_NEXT_VIDEO, MISTRAL3, PERCEPTION_LM, VIDEO_LLAVA
from tests.architectures.llava_onevision import LLAVA_ONEVISION
from tests.architectures.more_grid import (
    COSMOS3_OMNI,
    GLM4V_MOE,
    GLM_OCR,
    HUNYUAN_VL,
    HY_V4_VL,
    INKLING,
    INKLING2_LOOP,
    MINICPM_OCR,
    MINICPMV4_7,
    PADDLEOCR_VL,
    QWEN3_5_MOE,
    QWEN3_OMNI_MOE,
    QWEN4_EXP,
)
from tests.architectures.more_images import (
    COHERE2_VISION,
    DEEPSEEK_VL_HYBRID,
    FAST_VLM,
    FUYU,
    GRANITE_DOCLING,
    JANUS,
    LIGHTON_OCR,
    PALIGEMMA,
)
from tests.architectures.others import MINICPMV4_6, MOLMO2, NEMOTRON_H_OMNI, OVIS2
from tests.architectures.qwen2_vl import QWEN2_5_VL, QWEN2_VL
from tests.architectures.video_llama_3 import VIDEO_LLAMA_3

# Every feature is tested on these; the further ones are tested by `tests/test_every_architecture.py`.
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (LLAVA_ONEVISION, QWEN2_VL, QWEN2_5_VL, INTERNVL, VIDEO_LLAMA_3)
}
FURTHER: tuple[Architecture, ...] = (
    *(LLAVA, LLAVA_NEXT, LLAVA_NEXT_VIDEO, VIDEO_LLAVA, PERCEPTION_LM, MISTRAL3, ARIA),
    *(IDEFICS3, SMOLVLM, GEMMA3, GEMMA4),
    *(QWEN3_VL, QWEN3_VL_MOE, QWEN3_5, QWEN2_5_OMNI, GLM4V, GLM46V, COHERE_COMPASS, COSMOS3_EDGE),
    *(EXAONE4_5, HYPERCLOVAX, LFM3_VL, KIMI_K25, MINIMAX_M3_VL, MUSE_GLIMMER, MUSE_SPARK, DOTS3_NOTE, ERNIE4_5_VL),
    *(GLM5_NEXT, INKLING2, INSTRUCTBLIPVIDEO, MINICPMV4_6, MOLMO2, NEMOTRON_H_OMNI, OVIS2),
    *(VIP_LLAVA, AYA_VISION, GOT_OCR2, IDEFICS2, DEEPSEEK_VL, QIANFAN_OCR, LFM2_VL),
    *(GLM4V_MOE, GLM_OCR, QWEN3_5_MOE, PADDLEOCR_VL, HUNYUAN_VL, QWEN3_OMNI_MOE, COSMOS3_OMNI),
    *(QWEN4_EXP, HY_V4_VL, MINICPM_OCR, MINICPMV4_7, INKLING2_LOOP, INKLING),
    *(COHERE2_VISION, LIGHTON_OCR, PALIGEMMA, FAST_VLM, DEEPSEEK_VL_HYBRID, JANUS, GRANITE_DOCLING),
    *(FUYU, CHAMELEON, EMU3, APERTUS1P5, INSTRUCTBLIP, BLIP2, KOSMOS2, KOSMOS2_5),
    *(LLAMA4, MISTRAL_LARGE4, GRANITE4_VISION, GEMMA3N, STEP3P7, PHI4_MULTIMODAL, GEMMA4_UNIFIED, DEEPSEEK_OCR2),
)
ALL_ARCHITECTURES = ARCHITECTURES | {architecture.name: architecture for architecture in FURTHER}


@cache
def shared_model(name: str, **overrides: int | str) -> nn.Module:
    """The model of these arguments, one a process: for eager calls, and to be copied before compiling.

    A test of a model that this version of transformers lacks is skipped.
    """
    architecture = ALL_ARCHITECTURES[name]
    if not hasattr(transformers, architecture.model_class):
        pytest.skip(f"transformers {transformers.__version__} has no {architecture.model_class}")
    return architecture.build(**overrides)


__all__ = ["ALL_ARCHITECTURES", "ARCHITECTURES", "Architecture", "shared_model", "text_only", "visual_mask"]

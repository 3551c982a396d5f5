"""GLM-5-Next: delta attention, latent attention to the best pools of keys only, four residual streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.architectures.base import VISION_END, VISION_START
from tests.architectures.grid import LATENT, Glm4v

POOL = 4  # neighbouring keys that are attended to together or not at all


class Glm5Next(Glm4v):
    """As GLM-4V, each video between a start and an end token; no positions. Attention in every second layer."""

    name = "glm5_next"
    config_class = "Glm5NextConfig"
    model_class = "Glm5NextForConditionalGeneration"
    text_type, vision_type = "glm5_next_text", "glm5_next_vision"
    enclosed = True

    def text(self, text: dict[str, Any]) -> dict[str, Any]:
        layers = text["num_hidden_layers"]
        return {
            **text,
            **LATENT,
            "qk_rope_head_dim": 0,
            "num_key_value_heads": text["num_attention_heads"],
            "layer_types": ["indexed_attention" if i % 2 else "linear_attention" for i in range(layers)],
            "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1),
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "index_topk": 4 * POOL,
            "index_kpool": POOL,
            "index_head_dim": 16,
            "index_n_heads": 16,  # with few, many scores are zero, and ties decide
        }

    def tokens(self) -> dict[str, Any]:
        return super().tokens() | {"video_start_token_id": VISION_START, "video_end_token_id": VISION_END}

    def vision(self, hidden: int) -> dict[str, Any]:
        return super().vision(hidden) | {"projection_intermediate_size": 64}

    def build(self, **options: Any) -> nn.Module:
        """With streams mixed differently at every token, and delta attention that remembers some ten tokens."""
        model = super().build(**options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("_hc.scale"):
                    parameter.add_(1)
                elif name.endswith("dt_bias"):
                    parameter.sub_(4)
        return model


GLM5_NEXT = Glm5Next()

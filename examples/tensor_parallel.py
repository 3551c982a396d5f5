"""One model in several processes, each with a part of the attention heads: they keep the same visual tokens.

    python examples/tensor_parallel.py --ranks 2

Starts the ranks by torchrun, which talk by gloo on this machine. The model is small, with random weights, and is
loaded from a folder as a checkpoint would be. Needs accelerate, by which transformers loads the parts of a model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.distributed import DistributedConfig

import sharp_compile

VIDEO, IMAGE = 101, 102
FRAMES, TOKENS_PER_FRAME, QUESTION = 8, 4, 10


def main() -> None:
    """Save a model, and start the ranks that load it; or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, choices=(1, 2, 4), help="how many processes share the heads")
    parser.add_argument("--retention", type=float, default=0.25, help="share of the visual tokens that is kept")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is not None:
        be_a_rank(options.model, options.retention)
        return
    with tempfile.TemporaryDirectory() as folder:
        build().save_pretrained(folder)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(options.ranks)]
        arguments = ["--model", folder, "--retention", str(options.retention)]
        subprocess.run([sys.executable, *launch, __file__, *arguments], check=True)


def build() -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision with 8 attention heads, which share 4 key heads."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[16, 16]],
    )
    return LlavaOnevisionForConditionalGeneration(config)


def inputs() -> dict[str, torch.Tensor]:
    """A video of noise and a question about it: the same in every process."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 100, (1, QUESTION), generator=generator)
    video = torch.full((1, FRAMES * TOKENS_PER_FRAME + 1), VIDEO)
    ids = torch.cat([words[:, :2], video, words[:, 2:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(1, FRAMES, 3, 16, 16, generator=generator),
    }


def be_a_rank(folder: Path, retention: float) -> None:
    """Load this rank's part of the model, answer, and say what was kept."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    config = DistributedConfig(tp_plan="auto")
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, distributed_config=config).eval()
    model.compile(backend="sharp", options={"retention": retention, "inner": "eager", "on_skip": "raise"})
    prompt = inputs()
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    report = next(report for report in sharp_compile.reports() if report.pruned)
    assert report.kept is not None
    visual = prompt["input_ids"][0] == VIDEO
    kept = [position for position in report.kept[0].tolist() if visual[position]]
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    heads = model.config.text_config.num_attention_heads // ranks
    for rank in range(ranks):
        if ranks > 1:
            distributed.barrier()
        if ranks == 1 or rank == distributed.get_rank():
            print(f"rank {rank} with {heads} heads keeps {kept} of {int(visual.sum())}, says {answer.tolist()}")
    if ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""Put several videos and images into one prompt, and see how many tokens of each are kept.

    python examples/mix_videos_and_images.py

All visual tokens of a prompt share one budget: what of them is kept goes by their scores, whichever video or image they
come from. The model is a Qwen2.5-VL of moderate size with its real processor and random weights, so that its answer,
and which part gets more, mean nothing here. Needs the extra `video`.
"""

from __future__ import annotations

import argparse

import torch

import sharp_compile
from sharp_compile.tools.suppressed_logs import suppress_logs


def main(arguments: list[str] | None = None) -> None:
    """Ask one question about two videos and an image, and print what was kept of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retention", type=float, default=0.1, help="the share of visual tokens that is kept")
    parser.add_argument("--inner", default="eager", help='what compiles the pruned graph; "inductor" for speed')
    given = parser.parse_args(arguments)
    suppress_logs()
    from sharp_compile.tools.demo.models import built_in
    from sharp_compile.tools.demo.run import CLIP
    from sharp_compile.tools.demo.video import read

    model, processor = next(source for source in built_in() if source.name == "Qwen2.5-VL").load()
    frames = read(CLIP, 6).frames
    parts = {"video": frames[:2], "image": frames[2], "another video": frames[3:5]}

    content = [{"type": name.split()[-1]} for name in parts]
    content += [{"type": "text", "text": "What changes from the first video to the last?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        text=[prompt],
        videos=[parts["video"], parts["another video"]],
        images=[parts["image"]],
        do_sample_frames=False,
        return_tensors="pt",
    )

    sharp_compile.compile(model.eval(), retention=given.retention, inner=given.inner)
    model.generate(**inputs, max_new_tokens=2, do_sample=False)

    # Text stands between the parts: each is one run of placeholders.
    placeholders = torch.tensor([model.config.video_token_id, model.config.image_token_id])
    is_visual = torch.isin(inputs["input_ids"][0], placeholders)
    part = (is_visual & ~is_visual.roll(1)).cumsum(0).where(is_visual, 0)
    report = next(report for report in sharp_compile.reports() if report.pruned)
    assert report.kept is not None
    there, kept = part.bincount(), part[report.kept[0].cpu()].bincount(minlength=len(parts) + 1)
    for number, name in enumerate(["text", *parts]):
        print(f"{name}: {kept[number]} of {there[number]} tokens")


if __name__ == "__main__":
    main()

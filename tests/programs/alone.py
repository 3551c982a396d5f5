"""Answers prompts by programs in a process that has torch alone: `python alone.py FOLDER export|aoti`."""

import sys
from pathlib import Path

import torch

folder, kind = Path(sys.argv[1]), sys.argv[2]
load = {
    "export": lambda path: torch.export.load(path).module(),
    "aoti": lambda path: torch._inductor.aoti_load_package(str(path)),
}[kind]
prefill, step = (load(folder / f"{name}.pt2") for name in ("prefill", "step"))
inputs, new = torch.load(folder / "inputs.pt")
first = prefill(**inputs)
state, logits = dict(first), []
for number in range(new.shape[1]):
    logits.append(state.pop("logits")[:, -1])
    if number + 1 < new.shape[1]:
        state = dict(step(input_ids=new[:, number : number + 1], **state))
loaded = [name for name in ("transformers", "sharp_compile") if name in sys.modules]
torch.save((dict(first), torch.stack(logits), loaded), folder / "outputs.pt")

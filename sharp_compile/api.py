"""What a user calls: the top floor, which reads all others and is read by none of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import patches, report
from .calibration import Calibration
from .integrations.transformers.flash_attention import leave_flash_attention
from .integrations.transformers.prompt import tell_visual_tokens
from .options import Config, with_mode
from .unwrap import unwrap

Model = TypeVar("Model", bound=torch.nn.Module)

_one_at_a_time = threading.Lock()


def compile(
    model: Model,
    *,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    disable: bool = False,
    mode: str | None = None,
    **options: object,
) -> Model:
    """Compile ``model`` in place; ``generate`` is compiled too.

    Beside ``model.compile(backend="sharp", options=options)`` it tells each call which of its tokens are visual
    (``visual_tokens``), if the model's config and ``input_ids`` show it: for models that inject their features where no
    graph shows it. A language model of transformers that was loaded with FlashAttention attends by SDPA from then on,
    with a warning, unless ``flash_attention="keep"``: no graph shows its kernels. A model that is wrapped (PEFT,
    ``DistributedDataParallel``) is compiled inside of its wrappers, and a ``compile`` of its class's own is not asked.
    As ever in torch, a deep copy of a compiled module is not compiled.

    Args:
        model: a module.
        dynamic: handed to ``torch.compile``, like ``fullgraph`` and ``disable``.
        fullgraph: see there.
        disable: see there.
        mode: one of ``torch.compile``'s, which stands for options of Inductor; those of ``inductor`` come first.
        options: those of the backend, by keyword.

    Returns:
        The same model.

    Raises:
        ValueError: for a bad option or mode, before anything is compiled.
    """
    options = dict(with_mode(options, mode) or {})
    config = Config.parse(options)
    # By its name, torch would register it, which only one thread can.
    from .backend.entry import sharp
    from .integrations.recompile_limit import isolated

    patches.install()
    inside = unwrap(model)
    if not disable and config.flash_attention == "sdpa":
        leave_flash_attention(inside)
    torch.nn.Module.compile(
        inside, backend=sharp, options=options, dynamic=dynamic, fullgraph=fullgraph, disable=disable, **isolated()
    )
    if not disable:
        tell_visual_tokens(inside, options)
    return model


def calibrate(model: torch.nn.Module, /, *layouts: Mapping[str, Any], layer: int = 1, **inputs: Any) -> Calibration:
    """Measure what position alone explains, by running videos without content.

        black = processor(text=prompt, videos=numpy.zeros_like(video), return_tensors="pt")
        profile = sharp_compile.calibrate(model, **black)
        model.compile(backend="sharp", options={"debias": profile})

    Each layout (a number of visual tokens) is run once, unpruned, in eager mode. A video of a layout that was
    not measured is given the nearest one, stretched to its length.

    Args:
        model: a video model, compiled or not.
        layouts: inputs of one forward call each, with content-free frames.
        layer: the layer that will be scored at, as in the options.
        inputs: one more layout, by keyword.

    Returns:
        What to give as the option ``debias``.

    Raises:
        ValueError: if there are no inputs.
        CannotPrune: if the model can't be pruned at ``layer`` for these inputs, with the reason.
    """
    if not (layouts or inputs):
        raise ValueError("calibrate needs the inputs of a forward call, with content-free frames")
    profiles: dict[int, Tensor] = {}
    options: dict[str, Any] = {"retention": 1.0, "layer": layer, "segment": None, "debias": None, "dedup": None}
    from .backend.entry import sharp

    # Not the module itself: that may be compiled, with other options.
    measured = torch.compile(model.forward, backend=sharp, options=options | {"inner": "eager", "on_skip": "raise"})
    for layout in (*layouts, *([inputs] if inputs else ())):
        # Dynamo may share a graph, and so its report, with calibrations of other threads.
        with _one_at_a_time, report.watch() as graphs, torch.no_grad():
            measured(**layout)
            told = [graph.scores for graph in graphs if graph.scores is not None]
        for scores in told:
            per_row = [row[row.isfinite()] for row in scores.float().cpu()]
            if len({len(row) for row in per_row}) > 1:
                raise ValueError("the rows of a calibration batch must have the same number of visual tokens")
            profiles[len(per_row[0])] = torch.stack(per_row).mean(0)
    return Calibration(layer, profiles)

"""One forward call, explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.eval_frame import OptimizedModule

from . import patches, report
from .backend.entry import sharp
from .integrations.dynamo import backend_of, options_given, private
from .integrations.marked import options_of
from .options import DEFAULTS, PARTS, Config
from .patches import Patch
from .report import GraphReport

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class CachedLayer:
    """What the call left in the cache of one layer: how many tokens, and the bytes of their keys and values."""

    length: int
    bytes: int


@dataclass(frozen=True, repr=False)
class Explanation:
    """What the backend did to the graphs of one call.

    Attributes:
        graphs: a report for each graph that it was given, in order, as it was after the call.
        layers: what each layer's cache holds; empty where the call returned no cache.
        inputs: what the model was called with.
        patches: what is changed in torch and transformers for it.
        options: those of the backend that had a say, with the values that were not given.
    """

    graphs: tuple[GraphReport, ...]
    layers: tuple[CachedLayer, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        pruned = [graph for graph in self.graphs if graph.pruned]
        more = f": {pruned[-1].summary()}" if pruned else ""
        return f"<Explanation: {len(pruned)} of {len(self.graphs)} graphs pruned{more}>"

    @property
    def pruned(self) -> bool:
        """Whether any graph was shortened."""
        return any(graph.pruned for graph in self.graphs)

    def outcomes(self) -> list[tuple[str, GraphReport]]:
        """Each graph with its number; those of which the same is to be said, and that are not pruned, as one.

        Returns:
            Numbers as text (``"0, 2, 3"``), and the first such report.
        """
        numbers: dict[Any, list[int]] = {}
        for number, graph in enumerate(self.graphs):
            numbers.setdefault(number if graph.pruned else graph.reason, []).append(number)
        return [(", ".join(map(str, alike)), self.graphs[alike[0]]) for alike in numbers.values()]

    def table(self) -> Table:
        """Return the same facts for people."""
        from rich.table import Table

        table = Table(title="sharp_compile: what became of each graph")
        for column in ("graph", "pruned after layer", "sequence", "visual tokens", "why"):
            table.add_column(column)
        for numbers, graph in self.outcomes():
            if graph.pruned:
                cut = f"{graph.layer} of 0..{(graph.num_layers or 0) - 1}"
                sequence = f"{graph.sequence_length} -> {graph.pruned_length}"
                visual = f"{graph.visual_tokens} -> {graph.kept_tokens}"
                table.add_row(numbers, cut, sequence, visual, graph.reason)
            else:
                table.add_row(numbers, "-", "-", "-", graph.reason)
        return table

    def patch_table(self) -> Table:
        """Return what is changed in torch and transformers, for people: by where it acts. `patches` has the reasons."""
        from rich.table import Table

        table = Table(title="changed in torch and transformers (more: sharp_compile.patches.status())")
        for column in ("where it acts", "what"):
            table.add_column(column)
        targets: dict[str, list[str]] = {}
        for patch in self.patches:
            # A class and its method, or a module and its function: whole names don't fit a terminal.
            targets.setdefault(patch.acts, []).append(".".join(patch.target.split(".")[-2:]))
        for acts, names in targets.items():
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            table.add_row(acts, f"{', '.join(names[:2])}{more}")
        return table

    def to_html(
        self,
        path: str | Path,
        frames: np.ndarray | Sequence[np.ndarray] | None = None,
        title: str | None = None,
    ) -> None:
        """Write one HTML page that needs no network: scores and dropped tokens on the frames, layers, costs, reasons.

        Args:
            path: the file to write.
            frames: what the model saw, ``[T, H, W, 3]`` uint8; for a batch a sequence of such, one for each row. None
                takes the frames among the model's inputs, where they are there as frames and not as patches.
            title: the page's heading.

        Raises:
            ImportError: without Pillow, which the extra ``video`` brings.
            ValueError: for frames of another shape or type, or not one array for each row.
            OSError: where the file can't be written.
        """
        try:
            from .tools.html_report.write import write_page
        except ModuleNotFoundError as error:
            if error.name != "PIL":
                raise
            raise ImportError("to_html needs Pillow: pip install 'sharp-compile[video]'") from error
        if isinstance(frames, np.ndarray) and frames.ndim == 4:
            frames = frames[None]
        write_page(self, Path(path), None if frames is None else list(frames), title)


def explain(model: torch.nn.Module, /, **inputs: Any) -> Explanation:
    """Run one forward call of a model, and print what became of its graphs.

    A model that was compiled with this backend (``model.compile``, or what ``torch.compile`` returned) runs as it is:
    its new graphs are shown, and those that are pruned. Any other, one that was compiled with another backend among
    them, is compiled for this call with the default options. The operations of pruned graphs are counted, which takes
    seconds for a large model.

    Args:
        model: a module.
        inputs: what to call it with.

    Returns:
        The facts that were printed.
    """
    given = _options_of(model)
    call = model if given is not None else _compiled_with_defaults(model)
    with report.watch(flops=True) as graphs, torch.no_grad():
        output = call(**inputs)
    # Reports are of the last run, and the explanation is of this one.
    shown = tuple(replace(graph) for graph in graphs)
    explanation = Explanation(shown, _cached(output), inputs, tuple(patches.status()), _in_use(given or {}))
    from rich.console import Console

    Console().print(explanation.table(), explanation.patch_table())
    return explanation


def _options_of(model: torch.nn.Module) -> Mapping[str, Any] | None:
    """Return the options with which a model was compiled with this backend; None where it was not."""
    if isinstance(model, OptimizedModule):
        is_ours = backend_of(model.dynamo_ctx) is sharp
        return options_given(model.dynamo_ctx) if is_ours else None
    return next((given for part in model.modules() if (given := options_of(part)) is not None), None)


def _in_use(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that had a say, with the values that were not given."""
    config = Config.parse(given)
    idle = {name for name in PARTS if getattr(config, name) is None and name not in given}
    if given.get("stages") is not None:
        idle |= {"retention", "layer"}
    return {name: value for name, value in {**DEFAULTS, "inductor": {}, **given}.items() if name not in idle}


def _compiled_with_defaults(model: torch.nn.Module) -> Callable[..., Any]:
    inside = model._orig_mod if isinstance(model, OptimizedModule) else model
    with private():
        compiled: Callable[..., Any] = torch.compile(inside._call_impl, backend=sharp)
    return compiled


def _cached(output: Any) -> tuple[CachedLayer, ...]:
    """Return what is in the cache that a model of transformers returned."""
    layers = getattr(getattr(output, "past_key_values", None), "layers", ())
    held = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    return tuple(
        CachedLayer(keys.shape[-2], sum(tensor.numel() * tensor.element_size() for tensor in (keys, values)))
        for keys, values in held
        if isinstance(keys, Tensor) and isinstance(values, Tensor)
    )

"""Graphs as tests see them: what Dynamo makes, what a backend is handed, and listings to compare them by."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from sharp_compile import observability

GOLDEN = Path(__file__).parent / "passes" / "golden"


class Recorder:
    """A backend that runs graphs as they are, and keeps them with their first inputs."""

    def __init__(self) -> None:
        self.modules: list[GraphModule] = []
        self.inputs: list[Any] = []

    def __call__(self, module: GraphModule, inputs: Any) -> Callable[..., Any]:
        self.modules.append(module)
        self.inputs.append(inputs)
        return module.forward

    @property
    def operators(self) -> Counter[str]:
        """How many nodes of all graphs call each operator."""
        return sum((observability.operators(module.graph) for module in self.modules), Counter[str]())


def dynamo_graph(function: Callable[..., Any], *args: Any, **kwargs: Any) -> GraphModule:
    """The one graph that Dynamo makes of a call."""
    recorder = Recorder()
    torch.compile(function, backend=recorder, fullgraph=True)(*args, **kwargs)
    (module,) = recorder.modules
    return module


def listing(graph: Graph) -> str:
    """A line for each node: its name, what it holds as it was traced, and what it calls."""
    return "".join(f"{node.name}: {_held(node)} = {_call(node)}\n" for node in graph.nodes)


def assert_golden(name: str, **graphs: Graph | str) -> None:
    """Compare listings of graphs with the file of that name; ``SHARP_UPDATE_GOLDENS=1`` writes it anew, to be read."""
    listings = {title: each if isinstance(each, str) else listing(each) for title, each in graphs.items()}
    text = "\n".join(f"# {title.replace('_', ' ')}\n{lines}" for title, lines in listings.items())
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SHARP_UPDATE_GOLDENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; SHARP_UPDATE_GOLDENS=1 writes it anew"


def _held(node: Node) -> str:
    value = node.meta.get("example_value")
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    return "-" if value is None or isinstance(value, tuple) else str(value)


def _call(node: Node) -> str:
    if node.op == "placeholder":
        return "input"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    arguments = [*map(_text, node.args), *(f"{name}={_text(value)}" for name, value in node.kwargs.items())]
    return f"{'return' if node.op == 'output' else target}({', '.join(arguments)})"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return value.name if isinstance(value, Node) else repr(value)
